"""Pack a folder of images into DEST/train and DEST/validation.

Images are converted in parallel, in processes or on the Ray cluster of RAY_ADDRESS, and written in
order, so that the bytes do not depend on the number of workers. An interrupted packing is resumed
when it is started again: see write_once.py and SplitWriter.resume.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from orchestrator.data.format.images import Channels, Fit, fit_image, load_image, to_jpeg, to_png
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.format.shard_index import ProgressCallback, canonical_json
from orchestrator.data.format.write_once import reserve_destination
from orchestrator.data.format.writer import SHARD_BYTES
from orchestrator.data.prepare.folders import FolderLayout, ImageSource, find_sources
from orchestrator.data.prepare.parallel import Item, ParallelMap, Result, map_in_processes
from orchestrator.data.prepare.split import (
    VALIDATION_SHARE,
    PackedSample,
    PackSummary,
    SplitWriter,
    is_held_out,
)
from orchestrator.data.prepare.value_range import AskedRange, choose_value_range, read_extent
from orchestrator.errors import DataError

DEFAULT_FIT: Fit = "crop"
MAX_SERIAL = 64
"""Up to this many images are converted before other processes would have started."""


def pack_folder(  # noqa: PLR0913 - the options of one command
    source: str | Path,
    dest_uri: str,
    *,
    size: int | None = None,
    validation_share: float = VALIDATION_SHARE,
    side_by_side: bool = False,
    labels: bool = False,
    captions: bool = False,
    unpaired: bool = False,
    channels: Channels = 3,
    jpeg: int | None = None,
    fit: Fit | None = None,
    value_range: AskedRange = None,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    parallel_map: ParallelMap = map_in_processes,
    progress: ProgressCallback | None = None,
    is_reserved: bool = False,
) -> PackSummary:
    """Pack the images under ``source`` into sets under ``dest_uri``; see folders.py for layouts.

    Args:
        size: height and width to resize to; None requires images of one size.
        fit: how images that are not square become so, see ``images.fit_image``: by default crop;
            without ``size`` and ``fit``, images must be square.
        value_range: see ``choose_value_range``.
        validation_share: fraction to hold out, in [0, 1), unless the folder is split already.
        jpeg: JPEG quality, 1 to 95; None packs PNG.
        parallel_map: runs the conversion in ``workers``; cluster.ray_map.map_on_ray uses Ray.
        is_reserved: the caller has reserved ``dest_uri``: see write_once.py.

    Raises:
        UsageError: options that do not go together.
        DataError: there are no images, one cannot be decoded or fit, or a set exists already.
    """
    layout = FolderLayout(side_by_side, labels, captions, unpaired, validation_share)
    sources = find_sources(Path(source), layout)
    classes = tuple(sorted({each.label for each in sources if each.label is not None}))
    paths = tuple(dict.fromkeys(path.absolute() for each in sources for path in each.paths))
    extents = _map_all(read_extent, paths, paths[0], workers, parallel_map)
    named = {str(path): extent for path, extent in zip(paths, extents, strict=True)}
    chosen = choose_value_range(named, value_range)
    convert = _Converter(size, channels, jpeg, layout, classes, fit, chosen.value_range)
    options: dict[str, object] = {"size": size, "channels": channels, "jpeg": jpeg}
    options |= {"shard_bytes": shard_bytes, "fit": fit, "range": str(chosen.value_range)}
    images = {"images": len(sources), "sources": _digest(sources, Path(source))}
    plan = images | options | asdict(layout)
    with nullcontext() if is_reserved else reserve_destination(dest_uri, plan):
        writer = SplitWriter(dest_uri, shard_bytes, classes)
        convert_all = partial(_convert_all, convert, workers=workers, parallel_map=parallel_map)
        _write_all(writer, sources, convert(sources[0]), convert_all, progress)
        return replace(writer.finish(), notes=chosen.notes)


def _write_all(
    writer: SplitWriter,
    sources: list[ImageSource],
    first: PackedSample,
    convert_all: Callable[[list[ImageSource]], Generator[PackedSample, None, None]],
    progress: ProgressCallback | None,
) -> None:
    """Convert and write the samples that an interrupted packing has not finished."""
    kept = writer.resume(first)
    rest = [source for source in sources if not _is_kept(source, kept)]
    num_done = len(sources) - len(rest)
    with closing(convert_all(rest)) as samples:
        for number, sample in enumerate(samples):
            if sample.image_size != first.image_size:
                raise DataError(
                    f"{rest[number].paths[0]} is {sample.image_size} px and "
                    f"{sources[0].paths[0]} is {first.image_size} px; give --size to resize "
                    "all to one size"
                )
            writer.add(sample)
            if progress is not None:
                progress(num_done + number + 1, len(sources))


def _digest(sources: list[ImageSource], folder: Path) -> str:
    """Hash the names, sizes and modification times of the files, wherever the folder is."""
    digest = hashlib.sha256()
    for source in sources:
        files = [(str(path.relative_to(folder)), path.stat()) for path in source.paths]
        stats = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
        digest.update(canonical_json({**asdict(source), "paths": stats}))
    return digest.hexdigest()


def _is_kept(source: ImageSource, kept: dict[bool, set[str]]) -> bool:
    held_out = source.for_validation
    return any(source.key in keys for part, keys in kept.items() if held_out in (part, None))


def _convert_all(
    convert: "_Converter",
    sources: list[ImageSource],
    workers: int | None,
    parallel_map: ParallelMap,
) -> Generator[PackedSample, None, None]:
    # Workers on other machines have another working directory.
    absolute = [replace(s, paths=tuple(path.absolute() for path in s.paths)) for s in sources]
    needs = absolute[0].paths[0] if absolute else Path()
    yield from _map_all(convert, absolute, needs, workers, parallel_map)


def _map_all(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    needs: Path,
    workers: int | None,
    parallel_map: ParallelMap,
) -> Iterator[Result]:
    if len(items) <= MAX_SERIAL:
        return map(function, items)
    return parallel_map(function, items, workers, needs=needs)


@dataclass(frozen=True)
class _Converter:
    """Load, split, resize and encode the images of one sample; picklable for other processes."""

    size: int | None
    channels: Channels
    jpeg: int | None
    layout: FolderLayout
    classes: tuple[str, ...]
    fit: Fit | None = None
    """By default crop, and without ``size`` images must be square."""
    value_range: ValueRange | None = None

    def __call__(self, source: ImageSource) -> PackedSample:
        images = [load_image(path, self.channels, self.value_range) for path in source.paths]
        if source.halves:
            images = _split_halves(images[0], source.paths[0])
        resized = self._resize(images, source.paths)
        fields = ("image",) if len(images) == 1 else ("a", "b")
        return PackedSample(
            source.key,
            {name: self._encode(image) for name, image in zip(fields, resized, strict=True)},
            self._is_held_out(source, images[0]),
            resized[0].width,
            self.channels,
            label=None if source.label is None else self.classes.index(source.label),
            caption=source.caption,
            ending="png" if self.jpeg is None else "jpg",
        )

    def _resize(self, images: list[Image.Image], paths: tuple[Path, ...]) -> list[Image.Image]:
        resized = images
        if self.size or self.fit:
            resized = [fit_image(image, self.size, self.fit or DEFAULT_FIT) for image in images]
        unpaired = self.layout.unpaired
        if len({image.size for image in (resized if unpaired else images)}) > 1:
            cure = "give --size" if unpaired else "the images of a pair must have one size"
            raise DataError(f"{paths[0]} and {paths[1]} differ in size; {cure}")
        width, height = resized[0].size
        if width != height:
            raise DataError(
                f"{paths[0]} is {width}x{height}, not square; give --size to crop and resize "
                "(see --fit), or --side-by-side if it holds a pair"
            )
        return resized

    def _encode(self, image: Image.Image) -> bytes:
        return to_png(image) if self.jpeg is None else to_jpeg(image, self.jpeg)

    def _is_held_out(self, source: ImageSource, image: Image.Image) -> bool:
        if source.for_validation is not None:
            return source.for_validation
        shape = f"{image.width}x{image.height} ".encode()
        return is_held_out(shape + image.tobytes(), self.layout.validation_share)


def _split_halves(image: Image.Image, path: Path) -> list[Image.Image]:
    if image.width % 2:
        raise DataError(
            f"{path} is {image.width} px wide, which does not split into two equal halves"
        )
    half = image.width // 2
    return [image.crop((left, 0, left + half, image.height)) for left in (0, half)]
