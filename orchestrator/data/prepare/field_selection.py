"""Choose the members of samples to use as images, classes and captions."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.data.format.images import Channels
from orchestrator.data.prepare.value_range import AskedRange
from orchestrator.errors import UsageError

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp")
OTHER_IMAGE_ENDINGS = ("bmp", "gif", "pgm", "ppm", "tif", "tiff")
"""Endings that are images if a sample has none of the more common ones."""

Endings = tuple[str, ...]
"""Of the members with the image of a field, in order of preference, in lower case."""


@dataclass(frozen=True)
class FieldSelection:
    """Members of a sample to use; by default those of the first sample."""

    image: str | None = None
    """Ending of the image, for samples with one image, or several, such as "jpg,png"."""
    a: str | None = None
    b: str | None = None
    """Endings of the two images of a pair."""
    labels: bool = True
    captions: bool = True
    classes: tuple[str, ...] = ()
    """Class names by number; by default the numbers."""
    channels: Channels | None = None
    """By default 1 if all images are grey, else 3."""
    value_range: AskedRange = None
    """Values of black and white of images of more than 8 bits: see ``choose_value_range``."""

    def __post_init__(self) -> None:
        if (self.a is None) != (self.b is None) or (self.image and self.a):
            raise UsageError(
                "give the ending of one image with --image, or of two with --a and --b"
            )

    def resolve(self, found: Sequence[str], where: str) -> dict[str, Endings]:
        """Return the endings of each image field, given the endings ``found`` in a sample.

        By default a field may have the other endings of images, too. Raises UsageError if the
        choice is ambiguous or a sample has none of the endings.
        """
        found = [ending.lower() for ending in found]
        chosen = {"image": self.image} if self.image else {"a": self.a, "b": self.b}
        fields = {name: _parse(text) for name, text in chosen.items() if text}
        listed = ", ".join(found)
        if not fields:
            images = _images(found, IMAGE_ENDINGS) or _images(found, OTHER_IMAGE_ENDINGS)
            if len(images) == 1:
                return {"image": _alternatives(images[0])}
            if [image.partition(".")[0] for image in images] == ["a", "b"]:
                return dict(zip("ab", map(_alternatives, images), strict=True))
            raise UsageError(
                f"{where} holds {listed}: choose the image with --image ENDING, or the pair with "
                "--a ENDING --b ENDING"
            )
        missing = [" or ".join(each) for each in fields.values() if not {*each} & {*found}]
        if missing:
            raise UsageError(f"{where} holds {listed}, but no {' and no '.join(missing)}")
        return fields


def _parse(text: str) -> Endings:
    endings = (ending.strip().lstrip(".").lower() for ending in text.split(","))
    return tuple(dict.fromkeys(filter(None, endings)))


def _images(found: Sequence[str], endings: Endings) -> list[str]:
    return sorted(ending for ending in found if ending.rpartition(".")[2] in endings)


def _alternatives(ending: str) -> Endings:
    """Return ``ending``, then those of other kinds of images with the same prefix."""
    prefix, dot, _ = ending.rpartition(".")
    others = (prefix + dot + other for other in IMAGE_ENDINGS + OTHER_IMAGE_ENDINGS)
    return tuple(dict.fromkeys((ending, *others)))
