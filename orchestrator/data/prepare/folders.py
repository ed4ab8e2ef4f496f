"""Find the samples in a folder of images.

Layouts:
    A/x.png, B/x.png        pairs: equal names, fields ``a`` and ``b``
    x.png                   with side_by_side, pairs in one file: left half ``a``, right half ``b``
    trainA/, trainB/, ...   with unpaired, two sets of images that do not belong together, as in
                            the CycleGAN archives; also A/ and B/ with any names
    x.png                   otherwise single images, field ``image``
    cats/x.png              with labels, one folder per class
    x.png, x.txt            with captions, a text file beside each image (beside ``a`` of a pair)
    train/..., val/...      any of these, already split (or test/, validation/); as in the
                            pix2pix archives, files twice as wide as high are pairs side by side
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from orchestrator.data.format.images import SUFFIXES, load_image
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.prepare.split import VALIDATION_SHARE, is_held_out
from orchestrator.errors import DataError, UsageError

HELD_OUT_FOLDERS = ("validation", "val", "test")


@dataclass(frozen=True)
class FolderLayout:
    """How to read a folder; see above. The field names are part of the plan of a packing."""

    side_by_side: bool = False
    labels: bool = False
    captions: bool = False
    unpaired: bool = False
    validation_share: float = VALIDATION_SHARE
    """Fraction to hold out, in [0, 1), unless the folder is split already."""

    def __post_init__(self) -> None:
        if self.unpaired and (self.side_by_side or self.labels or self.captions):
            raise UsageError(
                "--unpaired does not go with --side-by-side, --labels or --captions; "
                "give --unpaired alone"
            )


@dataclass(frozen=True)
class ImageSource:
    """Files of one sample. The field names are part of the plan of a packing."""

    key: str
    paths: tuple[Path, ...]
    """One file, or those of ``a`` and ``b``."""
    halves: bool = False
    """Whether the one file holds ``a`` and ``b`` side by side."""
    for_validation: bool | None = None
    """None if the folder is not split already."""
    label: str | None = None
    """Class name."""
    caption: str | None = None


def find_sources(folder: Path, layout: FolderLayout) -> list[ImageSource]:
    """Find all samples of ``folder``, ordered by name.

    Raises DataError if there are none, or if the folder does not match ``layout``.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds the images")
    if layout.unpaired:
        return _find_unpaired(folder, layout.validation_share)
    held_out = [folder / name for name in HELD_OUT_FOLDERS if (folder / name).is_dir()]
    if not (folder / "train").is_dir():
        return _find_in(folder, None, layout, layout.side_by_side)
    sources: list[ImageSource] = []
    for part in (folder / "train", *held_out[:1]):
        for_validation = part.name != "train" if held_out else None
        halves = layout.side_by_side or _is_side_by_side(part)
        sources += _find_in(part, for_validation, layout, halves)
    return sources


def _is_side_by_side(folder: Path) -> bool:
    """Whether the first image is twice as wide as high, as in the pix2pix archives."""
    if (folder / "A").is_dir():
        return False
    first = next(iter(_list_images(folder).values()))
    width, height = load_image(first, value_range=ValueRange(0, 1)).size
    return width == 2 * height


def _find_in(
    folder: Path, for_validation: bool | None, layout: FolderLayout, halves: bool
) -> list[ImageSource]:
    if (folder / "A").is_dir() and (folder / "B").is_dir():
        groups = _match_names(_list_images(folder / "A"), _list_images(folder / "B"), folder)
        halves = False
    else:
        groups = {name: (path,) for name, path in _list_images(folder).items()}
    return [
        ImageSource(
            key,
            groups[name],
            halves,
            for_validation,
            _class_of(name, groups[name][0]) if layout.labels else None,
            _read_caption(groups[name][0]) if layout.captions else None,
        )
        for name, key in zip(groups, _make_keys(groups), strict=True)
    ]


def _match_names(
    a: dict[str, Path], b: dict[str, Path], folder: Path
) -> dict[str, tuple[Path, ...]]:
    unmatched = sorted(set(a) ^ set(b))
    if unmatched:
        raise DataError(
            f"{folder}: {unmatched[0]} is in only one of A and B ({len(unmatched)} such names); "
            "every image needs its partner of the same name, or give --unpaired"
        )
    return {name: (a[name], b[name]) for name in a}


def _find_unpaired(folder: Path, validation_share: float) -> list[ImageSource]:
    """Combine the images of A and B; those of the shorter side are repeated in order."""
    if (folder / "trainA").is_dir() and (folder / "trainB").is_dir():
        train = tuple(list(_list_images(folder / f"train{side}").values()) for side in "AB")
        tests = (folder / f"test{side}" for side in "AB")
        held_out = tuple(list(_list_images(t).values()) if t.is_dir() else [] for t in tests)
    elif (folder / "A").is_dir() and (folder / "B").is_dir():
        train, held_out = ([], []), ([], [])
        for side, name in enumerate("AB"):
            # Split before combining: a repeated image must not be in both sets.
            for path in _list_images(folder / name).values():
                part = held_out if is_held_out(path.read_bytes(), validation_share) else train
                part[side].append(path)
    else:
        raise DataError(
            f"{folder} does not hold the folders of unpaired images: trainA and trainB "
            "(and testA and testB), or A and B"
        )
    return [*_combine_sides(train, False), *_combine_sides(held_out, True)]


def _combine_sides(sides: tuple[list[Path], ...], for_validation: bool) -> list[ImageSource]:
    if not all(sides):
        return []
    length = max(map(len, sides))
    couples = list(zip(*(islice(cycle(side), length) for side in sides), strict=True))
    keys = _make_keys(f"{a.stem}-{b.stem}" for a, b in couples)
    return [
        ImageSource(key, couple, for_validation=for_validation)
        for key, couple in zip(keys, couples, strict=True)
    ]


def _class_of(name: str, path: Path) -> str:
    label, slash, _ = name.partition("/")
    if not slash:
        raise DataError(f"{path} is not in a class folder; sort all images into such folders")
    return label


def _read_caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise DataError(f"{path} has no caption: write one to {text}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{text} is not UTF-8 text: {error}") from error


def _list_images(folder: Path) -> dict[str, Path]:
    """Return the image files below ``folder``, hidden ones excepted, by path without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if name in found:
            raise DataError(f"{found[name]} and {path} differ in suffix only; rename one of them")
        found[name] = path
    if not found:
        raise DataError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
    return found


def _make_keys(names: Iterable[str]) -> list[str]:
    """Return a sample key per name: its number, which makes it unique, and the readable part."""
    return [
        f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:]}"
        for number, name in enumerate(names)
    ]
