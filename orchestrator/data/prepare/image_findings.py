"""What becomes of the pixels of a folder's images: halves, sizes, colours, rotation, frames."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.data.format.images import Channels, Fit, is_grey
from orchestrator.data.prepare.file_facts import FileFacts
from orchestrator.data.prepare.findings import FolderFinding, count, printable, printable_all
from orchestrator.data.prepare.folders import ImageSource

MOSTLY = 0.9
"""Fraction of files of one shape that makes the user think about the others."""
Size = tuple[int, int]


DEFAULT_FIT: Fit = "crop"
_FITTED = {
    "crop": "cropped to the square in the middle",
    "pad": "padded with white to a square",
    "stretch": "stretched to a square",
}


@dataclass(frozen=True)
class PackedShape:
    """What the packed images are to be."""

    size: int | None
    """Height and width; None keeps them."""
    fit: Fit | None
    """How images become square; None is DEFAULT_FIT with ``size``, else they must be square."""
    channels: Channels

    @property
    def applied_fit(self) -> Fit | None:
        """How images become square; None if they must be."""
        return self.fit or (DEFAULT_FIT if self.size else None)

    def side(self, size: Size) -> int:
        """Return the side of the square that an image of this size becomes before resizing."""
        return min(size) if self.applied_fit == "crop" else max(size)


def find_halves(
    sizes: Mapping[PurePosixPath, Size], side_by_side: bool | None, is_split: bool
) -> tuple[bool, list[FolderFinding]]:
    """Decide whether each file is to be split into its two halves.

    Without ``side_by_side`` only files of a split folder are, as in the pix2pix archives, and only
    if every one is twice as wide as high.
    """
    odd = [path for path, (width, height) in sizes.items() if width != 2 * height]
    num_double = len(sizes) - len(odd)
    if side_by_side is False:
        return False, []
    if side_by_side:
        if num_double <= len(odd):  # pairs of another shape: they must be wide, and even
            odd = [path for path, (w, h) in sizes.items() if w % 2 or w <= h]
        return True, list(_refuse_odd(sizes, odd))
    if not odd and is_split:
        text = f"{count(num_double, 'file')} of 2:1 are taken for pairs, a left and b right"
        return True, [FolderFinding("guessed", text, "--no-side-by-side")]
    if num_double >= MOSTLY * len(sizes):
        text = f"{num_double:,} of {count(len(sizes), 'file')} are 2:1, but are not taken for pairs"
        return False, [FolderFinding("guessed", text, "--side-by-side", printable_all(odd))]
    return False, []


def _refuse_odd(
    sizes: Mapping[PurePosixPath, Size], odd: list[PurePosixPath]
) -> Iterator[FolderFinding]:
    if odd:
        examples = [
            f"{printable(p)} is {sizes[p][0]}x{sizes[p][1]}, not two images side by side"
            for p in odd
        ]
        text = f"{len(odd):,} of {count(len(sizes), 'file')} do not hold two images side by side"
        advice = "remove them, or leave --side-by-side out"
        yield FolderFinding("refused", text, advice, tuple(examples))


def find_misfits(
    root: Path,
    sources: Sequence[ImageSource],
    facts: Mapping[Path, FileFacts],
    shape: PackedShape,
    unpaired: bool,
) -> Iterator[FolderFinding]:
    """Yield why the images do not make a set: pairs of two sizes, or not all square and alike."""
    folder = _Folder(root, facts)
    unequal = [s for s in sources if len({folder.size(p, s.halves) for p in s.paths}) > 1]
    if unequal and (shape.size is None or not unpaired):
        text = f"{count(len(unequal), 'pair')} of images that differ in size"
        advice = "give --size" if unpaired else "the images of a pair must have one size"
        examples = [
            f"{folder.name(s.paths[0])} and {folder.name(s.paths[1])} differ in size"
            for s in unequal
        ]
        yield FolderFinding("refused", text, advice, tuple(examples))
        return
    if shape.size is not None:
        return
    sizes = {path: folder.size(path, s.halves) for s in sources for path in s.paths}
    oblong = [f"{folder.name(p)} is {w}x{h}, not square" for p, (w, h) in sizes.items() if w != h]
    if oblong and shape.applied_fit is None:
        text = f"{len(oblong):,} of {count(len(sizes), 'image')} are not square"
        advice = "give --size to crop and resize (see --fit), or --side-by-side if a file is a pair"
        yield FolderFinding("refused", text, advice, tuple(oblong))
        return
    sides = {path: shape.side(size) for path, size in sizes.items()}
    ((usual, _),) = Counter(sides.values()).most_common(1)
    others = [
        f"{folder.name(path)} is {sizes[path][0]}x{sizes[path][1]}, not {usual}x{usual} like most "
        "images"
        for path, side in sides.items()
        if side != usual
    ]
    if others:
        text = f"{len(others):,} of {count(len(sizes), 'image')} are not {usual}x{usual}"
        yield FolderFinding("refused", text, "give --size to resize all to one size", tuple(others))


def find_changes(
    root: Path, sources: Sequence[ImageSource], facts: Mapping[Path, FileFacts], shape: PackedShape
) -> Iterator[FolderFinding]:
    """Yield what packing does to the pixels of the files below ``root``."""
    folder = _Folder(root, facts)
    sizes = {path: folder.size(path, s.halves) for s in sources for path in s.paths}
    used = {path: facts[path] for path in sizes}
    turned = [path for path, each in used.items() if each.orientation > 1]
    yield from folder.changed(turned, "is", "are", "turned upright by EXIF")
    framed = [path for path, each in used.items() if each.frames > 1]
    if framed:
        examples = [f"{folder.name(path)} ({used[path].frames})" for path in framed]
        text = count(len(framed), "file has", "files have") + " several frames or pages"
        advice = "extract the others to pack them"
        yield FolderFinding(
            "left out", f"{text}, of which the first is packed", advice, tuple(examples)
        )
    clear = [path for path, each in used.items() if each.transparent]
    yield from folder.changed(clear, "is", "are", "transparent and laid on white")
    yield from _find_colours(folder, used, shape)
    deep = [path for path, each in used.items() if each.extent and each.extent.full_scale != 255]
    kinds = {used[path].extent.kind for path in deep}  # type: ignore[union-attr]
    what = f"of {' and '.join(sorted(kinds))} values and scaled to 8 bits"
    yield from folder.changed(deep, "is", "are", what, "--range")
    for profile in sorted({each.profile for each in used.values()} - {""}):
        converted = [path for path, each in used.items() if each.profile == profile]
        what = f"converted to sRGB from the colour profile {profile}"
        yield from folder.changed(converted, "is", "are", what)
    if shape.applied_fit:
        oblong = [path for path, (width, height) in sizes.items() if width != height]
        yield from folder.changed(oblong, "is", "are", _FITTED[shape.applied_fit], "--fit")
    if shape.size:
        to = f"{shape.size}x{shape.size}"
        for verb, is_so in (("enlarged", int.__lt__), ("scaled down", int.__gt__)):
            scaled = [path for path, size in sizes.items() if is_so(shape.side(size), shape.size)]
            yield from folder.changed(scaled, "is", "are", f"{verb} to {to}", "--size")


def _find_colours(
    folder: "_Folder", used: Mapping[Path, FileFacts], shape: PackedShape
) -> Iterator[FolderFinding]:
    grey = [path for path, each in used.items() if is_grey(each.mode)]
    coloured = [path for path, each in used.items() if not is_grey(each.mode)]
    if shape.channels == 1:
        yield from folder.changed(coloured, "becomes", "become", "grey", "--grey")
    else:
        yield from folder.changed(
            grey, "is grey and packed", "are grey and packed", "with three channels", "--grey"
        )
    for mode in sorted({used[path].mode for path in coloured} - {"RGB", "RGBA", "RGBX", "P", "PA"}):
        others = [path for path in coloured if used[path].mode == mode]
        yield from folder.changed(others, "is", "are", f"converted from {mode}")


class _Folder:
    """Sizes and names of the files of samples."""

    def __init__(self, root: Path, facts: Mapping[Path, FileFacts]) -> None:
        self._root, self._facts = root, facts

    def size(self, path: Path, halves: bool) -> Size:
        width, height = self._facts[path].size
        return (width // 2, height) if halves else (width, height)

    def name(self, path: Path) -> str:
        return printable(path.relative_to(self._root).as_posix())

    def changed(
        self, paths: Sequence[Path], verb: str, plural: str, what: str, advice: str = ""
    ) -> Iterator[FolderFinding]:
        if paths:
            text = count(len(paths), f"image {verb}", f"images {plural}")
            yield FolderFinding("changed", f"{text} {what}", advice, tuple(map(self.name, paths)))
