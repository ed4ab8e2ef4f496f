"""Classes and captions to sample from, as the command line names them."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import UsageError
from orchestrator.models.base import ModelConfig

COLUMNS = 8
"""Images per row of a grid; by default each row is of one class."""
MAX_IMAGES = 1_000_000


@dataclass(frozen=True)
class Conditions:
    """What the images are drawn from, besides their seeds."""

    num_images: int
    classes: tuple[int, ...] | None = None
    """Class of each image; None for a model without classes."""
    caption: str | None = None
    """Caption of all images, for a model with captions."""


def choose_conditions(
    config: ModelConfig,
    num_images: int | None,
    labels: Sequence[int] = (),
    counts: str | None = None,
    caption: str | None = None,
) -> Conditions:
    """Return the conditions of ``num_images`` images, or of as many as ``counts`` says.

    Args:
        labels: classes to draw, by default all; every ``COLUMNS`` images the next one.
        counts: classes with their numbers of images, such as 0:500,3:2000, instead of ``labels``
            and ``num_images``.

    Raises:
        UsageError: the model translates, or does not take these labels or this caption.
    """
    if config.translates:
        raise UsageError("this model translates images: give a folder of images as input")
    takes_captions = "captions" in config.takes
    if caption is not None and not takes_captions:
        raise UsageError(f"model {config.name} takes no caption; leave --caption out")
    for label in labels:
        _require_class(config, label, f"--label {label}")
    if counts is not None:
        pairs = parse_counts(counts)
        for label, _ in pairs:
            _require_class(config, label, f"--labels: class {label}")
        classes = tuple(label for label, count in pairs for _ in range(count))
        return Conditions(len(classes), classes)
    assert num_images is not None
    if takes_captions:
        if caption is None:
            raise UsageError(f"model {config.name} samples from a caption; give --caption TEXT")
        return Conditions(num_images, caption=caption)
    if not config.num_classes:
        return Conditions(num_images)
    chosen = labels or range(config.num_classes)
    return Conditions(
        num_images, tuple(chosen[i // COLUMNS % len(chosen)] for i in range(num_images))
    )


def parse_counts(text: str) -> list[tuple[int, int]]:
    """Parse CLASS:COUNT,... Raises UsageError if it is something else or has a class twice.

    >>> parse_counts("0:500,3:2000")
    [(0, 500), (3, 2000)]
    """
    expected = "expected CLASS:COUNT,CLASS:COUNT,... such as 0:500,3:2000"
    pairs = []
    for part in text.split(","):
        label, _, count = part.partition(":")
        if not (_is_number(label) and _is_number(count)) or not int(count):
            raise UsageError(f"--labels: {part.strip()!r} is not a class and its count; {expected}")
        pairs.append((int(label), int(count)))
    if len({label for label, _ in pairs}) < len(pairs):
        raise UsageError(f"--labels: {text!r} has a class twice; {expected}")
    if (total := sum(count for _, count in pairs)) > MAX_IMAGES:
        raise UsageError(f"--labels: {total:,} images are too many; at most {MAX_IMAGES:,}")
    return pairs


def _is_number(text: str) -> bool:
    return 0 < len(text.strip()) < 10 and text.strip().isascii() and text.strip().isdigit()


def _require_class(config: ModelConfig, label: int, option: str) -> None:
    classes = config.num_classes
    if not 0 <= label < classes:
        known = f"has classes 0 to {classes - 1}" if classes else "has no classes: leave it out"
        raise UsageError(f"{option}: model {config.name} {known}")
