"""Which metrics fit a model and a set."""

from collections.abc import Sequence

from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading.compatibility import check_fields
from orchestrator.errors import DataError, UsageError
from orchestrator.evaluation.measure import FEWEST, FEWEST_NEAR
from orchestrator.evaluation.metric_names import METRICS, OF_FEATURES, Metric, explain_misfits
from orchestrator.models.base import GenerativeModel


def choose_metrics(
    model: GenerativeModel,
    packed: ShardSet,
    num_images: int,
    *,
    training: ShardSet | None,
    asked: Sequence[str] | None = None,
    keys: tuple[str, str] = ("--metrics", "--num-images"),
) -> tuple[Metric, ...]:
    """Return the metrics to measure, in the order of METRICS: those asked for, or all that fit.

    ``keys`` are where the metrics and the number of images are given, for messages.

    Raises:
        UsageError: a metric is unknown or does not fit the model or the number of images.
        DataError: the set does not fit the model, or has too few images.
    """
    check_set(model, packed)
    if training is not None:
        check_set(model, training)
        _check_held_out(packed, training)
    reasons = _reasons(model, packed, num_images, has_training=training is not None)
    check_names(asked or ())
    for name in asked or ():
        if reason := reasons.get(name):
            raise UsageError(f"{keys[0]} {name}: {reason}")
    chosen = tuple(m for m in METRICS if (m in asked if asked else m not in reasons))
    if OF_FEATURES & set(chosen):
        fewest = FEWEST_NEAR if "nearest" in chosen else FEWEST
        _check_counts(packed, num_images, fewest, keys[1])
    return chosen


def need_features(metrics: Sequence[str] | None) -> bool:
    """Whether any of the metrics needs an extractor; None stands for all that fit."""
    return metrics is None or bool(OF_FEATURES & set(metrics))


def check_names(asked: Sequence[str]) -> None:
    """Raise UsageError unless all are names of metrics."""
    for name in asked:
        if name not in METRICS:
            raise UsageError(f"--metrics {name}: no such metric; there are {', '.join(METRICS)}")


def check_set(model: GenerativeModel, packed: ShardSet) -> None:
    """Check that a set has what the model draws and needs.

    Raises:
        DataError: channels, size, fields, classes or captions differ.
    """
    config = model.config
    if packed.channels != config.channels:
        kinds = {1: "grey", 3: "colour"}
        how = "with --grey" if config.channels == 1 else "without --grey"
        raise DataError(
            f"{packed.uri} has {kinds[packed.channels]} images, but the model draws "
            f"{kinds.get(config.channels, config.channels)} ones; give another set, or pack its "
            f"images again {how}"
        )
    if packed.image_size != config.image_size:
        raise DataError(
            f"{packed.uri} has images of {packed.image_size} px, but the model draws "
            f"{config.image_size} px; make a copy of the set with `orchestrator data cp --size "
            f"{config.image_size}`"
        )
    check_fields(packed, config)
    classes = len(packed.index.classes)
    if config.num_classes and classes != config.num_classes:
        raise DataError(
            f"{packed.uri} has {classes or 'no'} classes, but the model draws "
            f"{config.num_classes}; give a set with the classes that it was trained on"
        )


def _check_held_out(packed: ShardSet, training: ShardSet) -> None:
    if packed.digest == training.digest:
        raise DataError(
            f"{packed.uri} and {training.uri} are the same set; `nearest` needs images that the "
            "training never saw: give a held-out set with --data, such as the validation set"
        )


def _check_counts(packed: ShardSet, num_images: int, fewest: int, key: str) -> None:
    if packed.num_samples < fewest:
        raise DataError(
            f"{packed.uri} has {packed.num_samples} images, too few: the metrics need at least "
            f"{fewest}; give a larger set"
        )
    if num_images < fewest:
        raise UsageError(f"{key} {num_images} is too few: the metrics need at least {fewest}")


def _reasons(
    model: GenerativeModel, packed: ShardSet, num_images: int, *, has_training: bool
) -> dict[str, str]:
    """Return why metrics do not fit, by their names; those that fit are left out."""
    found = explain_misfits(model, num_images)
    if not has_training:
        found["nearest"] = "it needs the training set; give it with --training-data"
    if not packed.index.classes:
        found["kid_per_class"] = f"{packed.uri} has no classes"
    return found
