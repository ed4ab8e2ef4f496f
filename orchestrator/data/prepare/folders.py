"""Finds the samples in a folder of images.

What a folder can hold:
    A/x.png, B/x.png        pairs: equal names, fields ``a`` and ``b``
    x.png                   with side_by_side, pairs in one file: left half ``a``, right half ``b``
    trainA/, trainB/, ...   with unpaired, two sets of images that do not belong together, as in
                            the CycleGAN archives; also A/ and B/ with any names
    x.png                   otherwise single images, field ``image``
    cats/x.png              with labels, images in a folder for each class
    x.png, x.txt            with captions, a text beside each image (beside ``a`` of a pair)
    train/..., val/...      any of these, already split (or test/, validation/); as in the
                            pix2pix archives, files twice as wide as high are pairs side by side
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from orchestrator.data.format.images import SUFFIXES, load_image
from orchestrator.data.prepare.split import VALIDATION_SHARE, falls_to_validation
from orchestrator.errors import DataError, UsageError

HELD_OUT_FOLDERS = ("validation", "val", "test")


@dataclass(frozen=True)
class Layout:
    """How to understand a folder: see above."""

    side_by_side: bool = False
    labels: bool = False
    captions: bool = False
    unpaired: bool = False
    validation_share: float = VALIDATION_SHARE
    """What to hold out, in [0, 1), if the folder is not split itself."""

    def __post_init__(self) -> None:
        if self.unpaired and (self.side_by_side or self.labels or self.captions):
            raise UsageError(
                "unpaired images have no halves, labels or captions; give --unpaired alone"
            )


@dataclass(frozen=True)
class Source:
    """Where the images of one sample are."""

    key: str
    paths: tuple[Path, ...]
    """One file, or those of ``a`` and ``b``."""
    halves: bool = False
    """Whether the one file holds ``a`` and ``b`` side by side."""
    for_validation: bool | None = None
    """None where the folder does not say."""
    label: str | None = None
    """Name of its class."""
    caption: str | None = None


def sources(folder: Path, layout: Layout) -> list[Source]:
    """All samples of ``folder``, in an order that its names decide.

    Raises DataError if it holds none, or not what ``layout`` says.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the folder that holds the images")
    if layout.unpaired:
        return _unpaired(folder, layout.validation_share)
    held_out = [folder / name for name in HELD_OUT_FOLDERS if (folder / name).is_dir()]
    if not (folder / "train").is_dir():
        return _samples_in(folder, None, layout, layout.side_by_side)
    parts: list[tuple[Path, bool | None]] = [(folder / "train", None)]
    if held_out:
        parts = [(folder / "train", False), (held_out[0], True)]
    return [
        sample
        for part, for_validation in parts
        for sample in _samples_in(
            part, for_validation, layout, layout.side_by_side or _looks_paired(part)
        )
    ]


def _looks_paired(folder: Path) -> bool:
    """Whether the first file in ``folder`` is twice as wide as high, as in pix2pix archives."""
    if (folder / "A").is_dir():
        return False
    width, height = load_image(next(iter(_images(folder).values()))).size
    return width == 2 * height


def _samples_in(
    folder: Path, for_validation: bool | None, layout: Layout, halves: bool
) -> list[Source]:
    if (folder / "A").is_dir() and (folder / "B").is_dir():
        groups = _pairs(_images(folder / "A"), _images(folder / "B"), folder)
        halves = False
    else:
        groups = {name: (path,) for name, path in _images(folder).items()}
    return [
        Source(
            key,
            groups[name],
            halves,
            for_validation,
            _class(name, groups[name][0]) if layout.labels else None,
            _caption(groups[name][0]) if layout.captions else None,
        )
        for name, key in zip(groups, _keys(groups), strict=True)
    ]


def _pairs(a: dict[str, Path], b: dict[str, Path], folder: Path) -> dict[str, tuple[Path, ...]]:
    alone = sorted(set(a) ^ set(b))
    if alone:
        raise DataError(
            f"{folder}: {alone[0]} is in only one of A and B ({len(alone)} such names); "
            "every image needs its partner of the same name, or give --unpaired"
        )
    return {name: (a[name], b[name]) for name in a}


def _unpaired(folder: Path, validation_share: float) -> list[Source]:
    """Images of A with images of B, whose shorter side is repeated in its order."""
    if (folder / "trainA").is_dir() and (folder / "trainB").is_dir():
        train = tuple(list(_images(folder / f"train{side}").values()) for side in "AB")
        held_out = tuple(
            list(_images(folder / f"test{side}").values())
            if (folder / f"test{side}").is_dir()
            else []
            for side in "AB"
        )
    elif (folder / "A").is_dir() and (folder / "B").is_dir():
        train, held_out = ([], []), ([], [])
        for side, name in enumerate("AB"):
            # Each side by itself: an image that is repeated must not be on both sides of the split.
            for path in _images(folder / name).values():
                falls = falls_to_validation(path.read_bytes(), validation_share)
                (held_out if falls else train)[side].append(path)
    else:
        raise DataError(
            f"{folder} does not hold the folders trainA and trainB (and testA and testB), "
            "or A and B, which unpaired images come in"
        )
    return [*_partnered(train, False), *_partnered(held_out, True)]


def _partnered(sides: tuple[list[Path], ...], for_validation: bool) -> list[Source]:
    if not all(sides):
        return []
    length = max(map(len, sides))
    couples = list(zip(*(islice(cycle(side), length) for side in sides), strict=True))
    keys = _keys(f"{a.stem}-{b.stem}" for a, b in couples)
    return [
        Source(key, couple, for_validation=for_validation)
        for key, couple in zip(keys, couples, strict=True)
    ]


def _class(name: str, path: Path) -> str:
    """The folder that is the class of the image called ``name``."""
    label, slash, _ = name.partition("/")
    if not slash:
        raise DataError(f"{path} is in no folder of a class; sort all images into such folders")
    return label


def _caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise DataError(f"{path} has no caption: write one to {text}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{text} is no UTF-8 text: {error}") from error


def _images(folder: Path) -> dict[str, Path]:
    """The image files below ``folder`` by their path without suffix, sorted; not hidden ones."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if name in found:
            raise DataError(f"{found[name]} and {path} have one name; rename one of them")
        found[name] = path
    if not found:
        raise DataError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
    return found


def _keys(names: Iterable[str]) -> list[str]:
    """A sample key for each name: its number, so that none are equal, and what can be read."""
    return [
        f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:]}"
        for number, name in enumerate(names)
    ]
