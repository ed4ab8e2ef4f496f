"""Check that packed sets fit a job's model and batch size."""

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.errors import DataError


def open_training_set(job: Job) -> ShardSet:
    """Open the job's training set, and check that both of its sets fit; reads their indexes.

    Raises DataError if a set is missing, corrupt, or does not fit the model or the batch size.
    """
    train, validation = open_set(job.data.train), job.data.validation
    check_sets(train, None if validation is None else open_set(validation), job)
    return train


def check_sets(train: ShardSet | None, validation: ShardSet | None, job: Job) -> None:
    """Raise DataError unless the sets that are given fit the job."""
    for packed in (train, validation):
        if packed is not None:
            check_model_inputs(packed, job)
    if train is not None:
        check_training_set(train, job)


def check_model_inputs(packed: ShardSet, job: Job) -> None:
    """Raise DataError unless the set has the channels, fields, labels and captions of the model."""
    model = job.model
    if packed.channels != model.channels:
        how = "with --grey" if model.channels == 1 else "without --grey"
        raise DataError(
            f"{packed.uri} has images of {packed.channels} channels, but model.channels is "
            f"{model.channels}; change it, or pack the images again {how}"
        )
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
    classes = len(packed.index.classes)
    if "labels" in model.takes and classes != model.num_classes:
        raise DataError(
            f"{packed.uri} has {classes or 'no'} classes, but model {model.name} is configured for "
            f"{model.num_classes}; set model.classes: {classes}, or use another set"
        )
    if "captions" in model.takes and not packed.index.captions:
        raise DataError(
            f"{packed.uri} has no captions, which model {model.name} needs; "
            "fetch a set with captions, such as faces"
        )


def check_training_set(packed: ShardSet, job: Job) -> None:
    """Raise DataError unless augmented images fit the model and the set fills a batch."""
    size, section = job.model.image_size, job.data.augment
    resized = section.resize or packed.image_size
    if resized != size and not (section.crop and resized > size):
        raise DataError(
            f"{packed.uri} is packed at {packed.image_size} px, but model.image_size is {size}; "
            f"pack it again with --size {size}, copy it with `orchestrator data cp --size {size}`, "
            f"or set data.augment.resize: {size}"
        )
    if packed.num_samples < job.train.batch_size:
        raise DataError(
            f"{packed.uri} has {packed.num_samples} samples, fewer than one batch: "
            f"train.batch_size is {job.train.batch_size}"
        )
