"""Packs a folder of images, as folders.py finds them, into DEST/train and DEST/validation.

Images are converted in processes side by side, or on the Ray cluster that RAY_ADDRESS names, and
written in their order, so that the bytes do not depend on how many. An interrupted packing goes on
when it is started again: see once.py and SplitWriter.resume.
"""

import hashlib
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from PIL import Image

from orchestrator.data.format.images import Channels, load_image, squared, to_jpeg, to_png
from orchestrator.data.format.shard_index import Progress, canonical_json
from orchestrator.data.format.write_once import reserved
from orchestrator.data.format.writer import SHARD_BYTES
from orchestrator.data.prepare.folders import Layout, Source, sources
from orchestrator.data.prepare.process_map import ParallelMap, map_in_processes
from orchestrator.data.prepare.split import (
    VALIDATION_SHARE,
    PackSummary,
    Sample,
    SplitWriter,
    falls_to_validation,
)
from orchestrator.errors import DataError

FEW = 64
"""Up to so many images are converted before other processes would have started."""


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
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    parallel_map: ParallelMap = map_in_processes,
    progress: Progress | None = None,
    is_reserved: bool = False,
) -> PackSummary:
    """Pack the images under ``source`` (see folders.py) into sets under ``dest_uri``.

    Args:
        size: height and width to give every image; by default they must all have one already.
        validation_share: what to hold out, in [0, 1), if the folder is not split itself.
        side_by_side: each file holds a pair, left half A and right half B.
        labels: the folder that an image is in is its class.
        captions: the text of ``x.png`` is in ``x.txt``.
        unpaired: images of A and B do not belong together; the shorter side is repeated.
        channels: 3 packs colour, 1 grey.
        jpeg: quality to pack JPEG at, 1 to 95; by default PNG.
        workers: how many of ``parallel_map`` to use; by default all.
        parallel_map: what converts many images; cluster.ray_map.map_on_ray uses a Ray cluster.
        is_reserved: the caller keeps ``dest_uri`` for what it packs: see once.py.

    Raises:
        UsageError: these options do not go together.
        DataError: there are no images, one does not decode or fit, or a set is there already.
    """
    layout = Layout(side_by_side, labels, captions, unpaired, validation_share)
    found = sources(Path(source), layout)
    classes = tuple(sorted({each.label for each in found if each.label is not None}))
    convert = partial(
        _converted, size=size, channels=channels, layout=layout, classes=classes, jpeg=jpeg
    )
    options = {"size": size, "channels": channels, "jpeg": jpeg, "shard_bytes": shard_bytes}
    plan = {"images": len(found), "sources": _digest(found, Path(source))}
    whole_plan = {**plan, **options, **asdict(layout)}
    with nullcontext() if is_reserved else reserved(dest_uri, whole_plan):
        first = convert(found[0])
        writer = SplitWriter(dest_uri, shard_bytes, classes)
        kept = writer.resume(first)
        rest = [each for each in found if not _is_kept(each, kept)]
        done = len(found) - len(rest)
        with closing(_mapped(convert, rest, workers, parallel_map)) as samples:
            for number, sample in enumerate(samples):
                if sample.image_size != first.image_size:
                    raise DataError(
                        f"{rest[number].paths[0]} is {sample.image_size} px and "
                        f"{found[0].paths[0]} is {first.image_size} px; give --size to make all "
                        "one size"
                    )
                writer.add(sample)
                if progress is not None:
                    progress(done + number + 1, len(found))
        return writer.finish()


def _digest(found: list[Source], folder: Path) -> str:
    """Names which files are to be packed, by size and time of change, wherever the folder is."""
    digest = hashlib.sha256()
    for source in found:
        files = [(str(path.relative_to(folder)), path.stat()) for path in source.paths]
        about = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
        digest.update(canonical_json({**asdict(source), "paths": about}))
    return digest.hexdigest()


def _is_kept(source: Source, kept: dict[bool, set[str]]) -> bool:
    if source.for_validation is None:
        return any(source.key in keys for keys in kept.values())
    return source.key in kept[source.for_validation]


def _mapped(
    convert: "partial[Sample]",
    found: list[Source],
    workers: int | None,
    parallel_map: ParallelMap,
) -> Generator[Sample, None, None]:
    if len(found) <= FEW:
        yield from map(convert, found)
        return
    there = [replace(s, paths=tuple(path.absolute() for path in s.paths)) for s in found]
    yield from parallel_map(convert, there, workers, needs=there[0].paths[0])


def _converted(
    source: Source,
    *,
    size: int | None,
    channels: Channels,
    layout: Layout,
    classes: tuple[str, ...],
    jpeg: int | None,
) -> Sample:
    images = [load_image(path, channels) for path in source.paths]
    if source.halves:
        images = _halves(images[0], source.paths[0])
    key_image = images[0]
    held_out = source.for_validation
    if held_out is None:
        shape = f"{key_image.width}x{key_image.height} ".encode()
        held_out = falls_to_validation(shape + key_image.tobytes(), layout.validation_share)
    fields = ("image",) if len(images) == 1 else ("a", "b")
    packed = [squared(image, size) for image in images]
    if len({image.size for image in (packed if layout.unpaired else images)}) > 1:
        differ = f"{source.paths[0]} and {source.paths[1]} differ in size"
        raise DataError(
            f"{differ}; give --size" if layout.unpaired else f"{differ}; a pair may not"
        )
    width, height = packed[0].size
    if width != height:
        raise DataError(
            f"{source.paths[0]} is {width}x{height}, not square; give --size to pad and resize, "
            "or --side-by-side if it holds a pair"
        )
    encoded = [to_png(image) if jpeg is None else to_jpeg(image, jpeg) for image in packed]
    return Sample(
        source.key,
        dict(zip(fields, encoded, strict=True)),
        held_out,
        width,
        channels,
        label=None if source.label is None else classes.index(source.label),
        caption=source.caption,
        ending="png" if jpeg is None else "jpg",
    )


def _halves(image: Image.Image, path: Path) -> list[Image.Image]:
    if image.width % 2:
        raise DataError(f"{path} is {image.width} px wide, which makes no two halves side by side")
    middle = image.width // 2
    return [
        image.crop((0, 0, middle, image.height)),
        image.crop((middle, 0, image.width, image.height)),
    ]
