"""Packs a folder of images, as folders.py finds them, into DEST/train and DEST/validation."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from orchestrator.data.ahead import in_order
from orchestrator.data.folders import Layout, Source, sources
from orchestrator.data.images import Channels, load_image, squared, to_png
from orchestrator.data.shards import Progress
from orchestrator.data.split import (
    VALIDATION_SHARE,
    PackSummary,
    Sample,
    SplitWriter,
    falls_to_validation,
)
from orchestrator.data.writer import SHARD_BYTES
from orchestrator.errors import DataError


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
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
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

    Raises:
        UsageError: these options do not go together.
        DataError: there are no images, one does not decode or fit, or a set is there already.
    """
    layout = Layout(side_by_side, labels, captions, unpaired, validation_share)
    found = sources(Path(source), layout)
    classes = tuple(sorted({each.label for each in found if each.label is not None}))
    writer = SplitWriter(dest_uri, shard_bytes, classes)
    convert = partial(_converted, size=size, channels=channels, layout=layout, classes=classes)
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    first: Sample | None = None
    for number, sample in enumerate(in_order(pool, convert, found, ahead=4 * threads)):
        first = first or sample
        if sample.image_size != first.image_size:
            raise DataError(
                f"{found[number].paths[0]} is {sample.image_size} px and "
                f"{found[0].paths[0]} is {first.image_size} px; give --size to make all one size"
            )
        writer.add(sample)
        if progress is not None:
            progress(number + 1, len(found))
    return writer.finish()


def _converted(
    source: Source,
    *,
    size: int | None,
    channels: Channels,
    layout: Layout,
    classes: tuple[str, ...],
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
    return Sample(
        source.key,
        dict(zip(fields, map(to_png, packed), strict=True)),
        held_out,
        width,
        channels,
        label=None if source.label is None else classes.index(source.label),
        caption=source.caption,
    )


def _halves(image: Image.Image, path: Path) -> list[Image.Image]:
    if image.width % 2:
        raise DataError(f"{path} is {image.width} px wide, which makes no two halves side by side")
    middle = image.width // 2
    return [
        image.crop((0, 0, middle, image.height)),
        image.crop((middle, 0, image.width, image.height)),
    ]
