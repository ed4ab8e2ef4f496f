"""Check that packed sets fit each other, and a job's model and batch size."""

from collections.abc import Sequence

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.format.tar_headers import printable
from orchestrator.data.loading.training_set import TrainingSet, open_training_sets
from orchestrator.errors import DataError
from orchestrator.models.base import ModelConfig

MAX_LISTED = 5
"""Classes of a set that a message names."""


def open_training_set(job: Job) -> TrainingSet:
    """Open what the job trains on, and check that all of its sets fit; reads their indexes.

    Raises DataError if a set is missing, corrupt, or does not fit the others, the model or the
    batch size.
    """
    train, validation = open_training_sets(job.data), job.data.validation
    check_sets(train.sets, None if validation is None else open_set(validation), job)
    return train


def check_sets(train: Sequence[ShardSet], validation: ShardSet | None, job: Job) -> None:
    """Raise DataError unless the sets that are given fit each other and the job.

    The training sets are checked for a whole batch if ``train`` has all of them.
    """
    for number, packed in enumerate(train):
        for other in train[:number]:
            check_alike(other, packed)
    for packed in (*train, *([] if validation is None else [validation])):
        check_model_inputs(packed, job)
    for packed in train:
        check_image_size(packed, job)
    if len(train) == len(job.data.training_sets):
        check_batch(train, job)


def check_model_inputs(packed: ShardSet, job: Job) -> None:
    """Raise DataError unless the set has the channels, fields, labels and captions of the model."""
    model = job.model
    if packed.channels != model.channels:
        how = "with --grey" if model.channels == 1 else "without --grey"
        raise DataError(
            f"{packed.uri} has images of {packed.channels} channels, but model.channels is "
            f"{model.channels}; change it, or pack the images again {how}"
        )
    check_fields(packed, model)
    classes = len(packed.index.classes)
    if "labels" in model.takes and classes != model.num_classes:
        raise DataError(
            f"{packed.uri} has {classes or 'no'} classes, but model {model.name} is configured for "
            f"{model.num_classes}; set model.classes: {classes}, or use another set"
        )


def check_fields(packed: ShardSet, model: ModelConfig) -> None:
    """Raise DataError unless the set has the kinds of images and the captions of the model."""
    if set(packed.fields) not in ({"image"}, {"a", "b"}):
        raise DataError(
            f"{packed.uri} has the fields {', '.join(packed.fields)}; expected 'image', or "
            "'a' and 'b' for pairs"
        )
    if packed.fields == ("image",) and model.takes & {"pairs", "unpaired"}:
        raise DataError(
            f"{packed.uri} has single images, but model {model.name} translates one image "
            "into another; pack pairs (folders A and B, or --side-by-side files)"
        )
    if "captions" in model.takes and not packed.index.captions:
        raise DataError(
            f"{packed.uri} has no captions, which model {model.name} needs; "
            "fetch a set with captions, such as faces"
        )


def check_alike(one: ShardSet, other: ShardSet) -> None:
    """Raise DataError if two training sets cannot be in one batch, or are the same data."""
    for what, a, b in (
        ("images of {} px", one.image_size, other.image_size),
        ("images of {} channels", one.channels, other.channels),
        ("the fields {}", ", ".join(one.fields), ", ".join(other.fields)),
        ("the classes {}", _name_classes(one), _name_classes(other)),
        ("{} captions", _has_captions(one), _has_captions(other)),
    ):
        if a != b:
            raise DataError(
                f"{one.uri} has {what.format(a)}, and {other.uri} has {what.format(b)}; the sets "
                "of data.train must agree in this: pack one of them again, or leave it out"
            )
    if one.digest == other.digest:
        raise DataError(
            f"{one.uri} and {other.uri} are the same data (digest {one.digest[:12]}), so that "
            "samples would come twice in a pass; list one of them, with a greater weight"
        )


def _name_classes(packed: ShardSet) -> str:
    classes = packed.index.classes
    more = f", ... ({len(classes)} in all)" if len(classes) > MAX_LISTED else ""
    return ", ".join(map(printable, classes[:MAX_LISTED])) + more if classes else "(none)"


def _has_captions(packed: ShardSet) -> str:
    return "its own" if packed.index.captions else "no"


def check_image_size(packed: ShardSet, job: Job) -> None:
    """Raise DataError unless the set's images, augmented, fit the model."""
    size, section = job.model.image_size, job.data.augment
    resized = section.resize or packed.image_size
    if resized != size and not (section.crop and resized > size):
        raise DataError(
            f"{packed.uri} is packed at {packed.image_size} px, but model.image_size is {size}; "
            f"pack it again with --size {size}, copy it with `orchestrator data cp --size {size}`, "
            f"or set data.augment.resize: {size}"
        )


def check_batch(train: Sequence[ShardSet], job: Job) -> None:
    """Raise DataError unless the training sets together have the samples of a batch."""
    for packed in train if len(train) > 1 else ():
        if packed.num_samples == 0:
            raise DataError(f"{packed.uri} has no samples; leave it out of data.train")
    num_samples, names = sum(each.num_samples for each in train), [each.uri for each in train]
    if num_samples < job.train.batch_size:
        raise DataError(
            f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} {num_samples} samples, "
            f"fewer than one batch: train.batch_size is {job.train.batch_size}"
        )
