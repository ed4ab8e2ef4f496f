"""Pack a folder of images into DEST/train and DEST/validation.

Every file is read twice: folder_scan.py decodes it to find what is wrong with any of them before
anything is written, then it is converted. Both are done in parallel, in processes or on the Ray
cluster of RAY_ADDRESS. Samples are written in order, so that the bytes do not depend on the number
of workers. An interrupted packing is resumed
when it is started again: see write_once.py and SplitWriter.resume.
"""

import hashlib
import itertools
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from orchestrator.data.format.derived_input import derive_input
from orchestrator.data.format.images import (
    Channels,
    Fit,
    fit_image,
    load_encoded,
    load_image,
    to_jpeg,
    to_png,
)
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import ProgressCallback, canonical_json
from orchestrator.data.format.write_once import reserve_destination
from orchestrator.data.format.writer import SHARD_BYTES
from orchestrator.data.prepare.folder_scan import MAX_SERIAL, FolderScan, ImageContents, scan_folder
from orchestrator.data.prepare.folders import FolderLayout, ImageSource
from orchestrator.data.prepare.image_findings import PackedShape
from orchestrator.data.prepare.pack_report import REPORT_FILE, encode_report
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.data.prepare.split import (
    VALIDATION_SHARE,
    PackedSample,
    PackSummary,
    SplitWriter,
    is_held_out,
)
from orchestrator.data.prepare.value_range import AskedRange
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import DataError
from orchestrator.storage.open import open_storage


def pack_folder(  # noqa: PLR0913 - the options of one command
    source: str | Path,
    dest_uri: str,
    *,
    size: int | None = None,
    validation_share: float = VALIDATION_SHARE,
    side_by_side: bool | None = None,
    labels: bool = False,
    captions: bool = False,
    unpaired: bool = False,
    derived_input: DerivedInput | None = None,
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
    """Scan the images under ``source`` and pack them into sets under ``dest_uri``.

    Args:
        size: height and width to resize to; None requires images of one size.
        fit: how images that are not square become so, see ``images.fit_image``: by default crop;
            without ``size`` and ``fit``, images must be square.
        value_range: see ``choose_value_range``.
        validation_share: fraction to hold out, in [0, 1), unless the folder is split already.
        derived_input: how to make pairs of single images, see derived_input.py.
        jpeg: JPEG quality, 1 to 95; None packs PNG.
        parallel_map: runs the conversion in ``workers``; cluster.ray_map.map_on_ray uses Ray.
        is_reserved: the caller has reserved ``dest_uri``: see write_once.py.

    Raises:
        UsageError: options that do not go together.
        DataError: there are no images, one cannot be decoded or fit, or a set exists already.
    """
    layout = FolderLayout(
        side_by_side, labels, captions, unpaired, validation_share, derived_input=derived_input
    )
    scan = scan_folder(
        Path(source),
        layout,
        size=size,
        fit=fit,
        channels=channels,
        value_range=value_range,
        workers=workers,
        parallel_map=parallel_map,
    )
    return pack_scanned(
        scan,
        dest_uri,
        jpeg=jpeg,
        shard_bytes=shard_bytes,
        workers=workers,
        parallel_map=parallel_map,
        progress=progress,
        is_reserved=is_reserved,
    )


def pack_scanned(  # noqa: PLR0913 - the options of one command
    scan: FolderScan,
    dest_uri: str,
    *,
    jpeg: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    parallel_map: ParallelMap = map_in_processes,
    progress: ProgressCallback | None = None,
    is_reserved: bool = False,
) -> PackSummary:
    """Pack the samples that a scan has found, and keep its report; see ``pack_folder``."""
    scan.require_packable()
    sources, shape, chosen = scan.sources, scan.shape, scan.chosen_range
    # A set of square images has no fit, whatever was asked: equal sets have equal digests.
    preparation = Preparation(shape.applied_fit if scan.has_oblong else None, chosen.value_range)
    classes = scan.classes or _sorted_classes(sources)
    convert = _Converter(shape, jpeg, scan.layout, classes, preparation)
    options: dict[str, object] = {"size": shape.size, "channels": shape.channels, "jpeg": jpeg}
    options |= {"shard_bytes": shard_bytes, "fit": shape.fit, "range": str(chosen.value_range)}
    images = {"images": len(sources), "sources": _digest(scan)}
    plan = images | options | asdict(scan.layout)
    with nullcontext() if is_reserved else reserve_destination(dest_uri, plan):
        writer = SplitWriter(
            dest_uri, shard_bytes, classes, scan.multiple_captions, preparation,
            scan.layout.derived_input,
        )  # fmt: skip
        convert_all = partial(
            _convert_all, convert, scan.contents, workers=workers, parallel_map=parallel_map
        )
        (first,) = convert_all(sources[:1])
        _write_all(writer, sources, first, convert_all, progress)
        # Before the indexes: if they exist, everything does.
        open_storage(dest_uri).put(REPORT_FILE, encode_report(scan))
        return writer.finish()


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
                raise _changed(rest[number].paths[0])
            writer.add(sample)
            if progress is not None:
                progress(num_done + number + 1, len(sources))


def _sorted_classes(sources: list[ImageSource]) -> tuple[str, ...]:
    return tuple(sorted({each.label for each in sources if each.label is not None}))


def _digest(scan: FolderScan) -> str:
    """Hash the names, sizes and modification times of the files, wherever the folder is."""
    if scan.contents is not None:
        return scan.contents.digest()
    digest = hashlib.sha256()
    for source in scan.sources:
        files = [(str(path.relative_to(scan.folder)), path.stat()) for path in source.paths]
        stats = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
        digest.update(canonical_json({**asdict(source), "paths": stats}))
    return digest.hexdigest()


def _is_kept(source: ImageSource, kept: dict[bool, set[str]]) -> bool:
    held_out = source.for_validation
    return any(source.key in keys for part, keys in kept.items() if held_out in (part, None))


def _convert_all(
    convert: "_Converter",
    contents: ImageContents | None,
    sources: list[ImageSource],
    workers: int | None,
    parallel_map: ParallelMap,
) -> Generator[PackedSample, None, None]:
    if contents is not None:
        read = zip(sources, contents.read(sources), strict=True)
        if len(sources) <= MAX_SERIAL:
            yield from itertools.starmap(convert, read)
        else:
            yield from parallel_map(convert.of_encoded, read, workers, needs=None)
        return
    if len(sources) <= MAX_SERIAL:
        yield from map(convert, sources)
        return
    # Workers on other machines have another working directory.
    absolute = [replace(s, paths=tuple(path.absolute() for path in s.paths)) for s in sources]
    yield from parallel_map(convert, absolute, workers, needs=absolute[0].paths[0])


@dataclass(frozen=True)
class _Converter:
    """Load, split, resize and encode the images of one sample; picklable for other processes."""

    shape: PackedShape
    jpeg: int | None
    layout: FolderLayout
    classes: tuple[str, ...]
    preparation: Preparation

    def of_encoded(self, item: tuple[ImageSource, tuple[bytes, ...]]) -> PackedSample:
        """Convert a source whose images are not in files of their own."""
        return self(*item)

    def __call__(
        self, source: ImageSource, encoded: tuple[bytes, ...] | None = None
    ) -> PackedSample:
        """Convert the images of ``source``: its files, or those that are ``encoded``."""
        shape, value_range = self.shape, self.preparation.value_range
        if encoded is None:
            images = [load_image(path, shape.channels, value_range) for path in source.paths]
        else:
            images = [
                load_encoded(data, str(path), shape.channels, value_range)
                for path, data in zip(source.paths, encoded, strict=True)
            ]
        if source.halves:
            images = _split_halves(images[0], source.paths[0])
        resized = self._resize(images, source.paths)
        if kind := self.layout.derived_input:
            (target,) = resized
            resized = [derive_input(target, kind), target]
        fields = ("image",) if len(resized) == 1 else ("a", "b")
        return PackedSample(
            source.key,
            {name: self._encode(image) for name, image in zip(fields, resized, strict=True)},
            self._is_held_out(source, images[0]),
            resized[0].width,
            self.shape.channels,
            label=None if source.label is None else self.classes.index(source.label),
            caption=source.caption,
            ending="png" if self.jpeg is None else "jpg",
        )

    def _resize(self, images: list[Image.Image], paths: tuple[Path, ...]) -> list[Image.Image]:
        resized = images
        if fit := self.shape.applied_fit:
            resized = [fit_image(image, self.shape.size, fit) for image in images]
        width, height = resized[0].size
        if width != height or any(image.size != (width, height) for image in resized):
            raise _changed(paths[0])
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
        raise _changed(path)
    half = image.width // 2
    return [image.crop((left, 0, left + half, image.height)) for left in (0, half)]


def _changed(path: Path) -> DataError:
    return DataError(f"{path} has changed while the folder was packed; pack it again")
