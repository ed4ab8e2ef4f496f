"""Write drawn images: as PNG files with a grid, or as a packed set. Both resume."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch
from PIL import Image
from torch import Tensor

from orchestrator.console import log_info
from orchestrator.data.format.image_files import open_image
from orchestrator.data.format.images import Channels, to_png
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import INDEX, Index, ProgressCallback, open_set
from orchestrator.data.format.writer import SHARD_BYTES, ShardWriter
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.image_grid import tile
from orchestrator.sampling.conditions import COLUMNS
from orchestrator.sampling.image_blocks import draw_blocks, to_blocks
from orchestrator.sampling.image_inputs import GRID, SetInputs, to_square
from orchestrator.sampling.sampling_record import SamplingRecord, reserved
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

MAX_ROWS = 16
"""Limits the height of the grid."""
MAX_THREADS = 8
"""Files that are written at a time."""
_FIT_NOTES = {
    "crop": "only their middle is translated, as in training; --fit pad keeps all of them",
    "pad": "they are padded with white, which is cut off the outputs; see --fit",
    "stretch": "they are stretched, and the outputs shrunk to their proportions; see --fit",
}
_FIRST_SHARD = "000000.tar"


def write_files(
    record: SamplingRecord,
    uri: str,
    *,
    workers: int | None = 1,
    parallel_map: ParallelMap = map_in_processes,
    progress: ProgressCallback | None = None,
) -> list[str]:
    """Draw what ``record`` says, as PNG files at ``uri``; return their keys in order.

    Samples are 0000.png and so on; a translation has the name of its input, and its proportions:
    without the padding, its longer side is the model's ``image_size``; of a cropped image it is the
    square that was translated. grid.png shows the first images. Files that an interrupted call has
    written are kept.

    Raises:
        DataError: there is something from another call, or an input is corrupt.
    """
    storage, inputs = open_storage(uri), record.drawer.inputs
    count = record.conditions.num_images
    stems = inputs.stems if inputs else [f"{i:04d}" for i in range(count)]
    keys, grid = [f"{stem}.png" for stem in stems], f"{GRID}.png"
    with reserved(storage, record, {*keys, grid}) as existing:
        blocks = to_blocks(count, record.block, record.conditions.classes)
        rest = [b for b in blocks if not existing.issuperset(keys[n] for n in b.numbers)]
        drawn = draw_blocks(record.drawer, rest, workers, parallel_map)
        num_done, num_oblong = count - sum(len(block.numbers) for block in rest), 0
        with closing(drawn), ThreadPoolExecutor(MAX_THREADS) as pool:
            for block, images in zip(rest, drawn, strict=True):
                names = [keys[number] for number in block.numbers]
                list(pool.map(storage.put, names, [image.png for image in images]))
                num_done += len(images)
                num_oblong += sum(image.is_oblong for image in images)
                if progress is not None:
                    progress(num_done, count)
        if rest or grid not in existing:
            storage.put(grid, to_png(Image.fromarray(tile(_grid(storage, keys, record)))))
    if inputs and num_oblong:
        log_info(f"{num_oblong} of {count} images are not square: {_FIT_NOTES[inputs.fit]}")
    return keys


def write_set(
    record: SamplingRecord,
    uri: str,
    *,
    workers: int | None = 1,
    parallel_map: ParallelMap = map_in_processes,
    progress: ProgressCallback | None = None,
) -> Index:
    """Draw what ``record`` says, as one packed set at ``uri``; return its index.

    Samples keep their order, classes and captions. The shards that an interrupted call has
    finished are kept, so that a set that was finished stays as it is.

    Raises:
        DataError: there is something from another call, or an input or a shard is corrupt.
    """
    storage, count = open_storage(uri), record.conditions.num_images
    with reserved(storage, record, {_FIRST_SHARD, INDEX}) as existing:
        if INDEX in existing:
            return open_set(uri).index
        writer = _new_writer(record, uri)
        num_done = len(writer.resume())
        blocks = to_blocks(count, record.block, record.conditions.classes)
        rest = [block for block in blocks if block.numbers.stop > num_done]
        drawn = draw_blocks(record.drawer, rest, workers, parallel_map)
        with closing(drawn):
            for block, images in zip(rest, drawn, strict=True):
                for number, image in zip(block.numbers, images, strict=True):
                    if number >= num_done:
                        fields = {"image": image.png}
                        writer.add(f"{number:09d}", fields, image.label, image.caption)
                if progress is not None:
                    progress(block.numbers.stop, count)
        return writer.finish()


def _new_writer(record: SamplingRecord, uri: str) -> ShardWriter:
    config, inputs = record.drawer.config, record.drawer.inputs
    channels: Channels = 1 if config.channels == 1 else 3
    given = inputs.packed.index if isinstance(inputs, SetInputs) else None
    drawn = () if record.conditions.classes is None else range(config.num_classes)
    return ShardWriter(
        uri,
        ("image",),
        image_size=config.image_size,
        channels=channels,
        classes=given.classes if given else tuple(map(str, drawn)),
        captions=given.captions if given else record.conditions.caption is not None,
        multiple_captions=given.multiple_captions if given else False,
        preparation=inputs.preparation if inputs else Preparation(),
        origin=record.origin,
        shard_bytes=record.shard_bytes or SHARD_BYTES,
        new=False,
    )


def _grid(storage: Storage, keys: Sequence[str], record: SamplingRecord) -> list[list[Tensor]]:
    """Read the rows of the grid: an input and its translation, or the first samples."""
    size, inputs = record.drawer.config.image_size, record.drawer.inputs
    if inputs is None:
        images = [_read(storage, key) for key in keys[: COLUMNS * MAX_ROWS]]
        return list(_to_rows([to_square(image, size, "crop") for image in images]))
    channels: Channels = 1 if record.drawer.config.channels == 1 else 3
    return [
        [
            to_square(inputs.load(number, channels).image, size, inputs.fit),
            to_square(_read(storage, key), size, inputs.fit),
        ]
        for number, key in enumerate(keys[:MAX_ROWS])
    ]


def _read(storage: Storage, key: str) -> Image.Image:
    with open_image(io.BytesIO(storage.get(key)), ("PNG",)) as image:
        return image.convert("RGB")


def _to_rows(images: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Split ``images`` into rows of ``COLUMNS``; fill the last row with white."""
    columns = min(COLUMNS, len(images))
    for start in range(0, len(images), columns):
        row = list(images[start : start + columns])
        yield row + [torch.ones_like(row[0])] * (columns - len(row))
