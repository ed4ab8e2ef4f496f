"""Copy packed sets with all images resized to one size: new tar files with the same samples.

An interrupted copy starts again and finds that what it has written has the same bytes.
"""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from PIL import Image

from orchestrator.data.format.images import Fit, to_jpeg, to_png
from orchestrator.data.format.shard_index import (
    CAPTION,
    LABEL,
    ProgressCallback,
    ShardSet,
)
from orchestrator.data.format.tar_reader import HashingReader
from orchestrator.data.format.writer import SHARD_BYTES, ShardWriter
from orchestrator.data.prepare.copy import (
    MAX_THREADS,
    CopySummary,
    copy_extra_files,
    open_sets,
)
from orchestrator.data.prepare.image_findings import DEFAULT_FIT
from orchestrator.data.prepare.parallel import ProgressCounter, ordered_map
from orchestrator.errors import UsageError


@dataclass(frozen=True)
class Resizing:
    """How to resize and encode images."""

    size: int
    """Height and width."""
    fit: Fit | None = None
    """None is the set's own, or else DEFAULT_FIT."""
    jpeg: int | None = None
    """JPEG quality, 1 to 95; None writes PNG."""
    shard_bytes: int = SHARD_BYTES


class _Encoded(NamedTuple):
    """One sample before or after resizing."""

    where: str
    data: bytes


class _Resized(NamedTuple):
    images: dict[str, bytes]
    label: int | None
    caption: str | None


def copy_resized(
    source: str, dest: str, resizing: Resizing, progress: ProgressCallback | None = None
) -> CopySummary:
    """Write the set at ``source`` to ``dest`` resized, or SOURCE/train and SOURCE/validation.

    Samples keep their order, classes and captions. ``progress`` is called with the number of
    samples. Raises DataError if there is no set, a sample is corrupt, or ``dest`` holds other
    content; UsageError if ``source`` is ``dest``.
    """
    source, dest = source.rstrip("/"), dest.rstrip("/")
    if source == dest:
        raise UsageError(f"{dest} is the source: choose another destination")
    sets = open_sets(source, dest)
    counter = ProgressCounter(sum(packed.num_samples for packed in sets.values()), progress)
    num_shards = sum(_write_resized(s, uri, resizing, counter) for uri, s in sets.items())
    copy_extra_files(source, dest, sets)
    return CopySummary.of(sets, num_shards, num_kept=0)


def _write_resized(
    packed: ShardSet, target: str, resizing: Resizing, counter: ProgressCounter
) -> int:
    """Write one set and return its number of shards."""
    fit = resizing.fit or packed.index.fit or DEFAULT_FIT
    # Further inputs of a model are made square as the images were: here, or before.
    known, is_square = packed.index.preparation, packed.index.fit is None
    preparation = known if is_square or not known.fit else replace(known, fit=fit)
    writer = ShardWriter(
        target,
        packed.fields,
        image_size=resizing.size,
        channels=packed.channels,
        extension="png" if resizing.jpeg is None else "jpg",
        classes=packed.index.classes,
        captions=packed.index.captions,
        multiple_captions=packed.index.multiple_captions,
        preparation=preparation,
        origin=packed.index.origin,
        derived_input=packed.index.derived_input,
        shard_bytes=resizing.shard_bytes,
        new=False,
    )
    threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    resize = partial(_resize, packed, replace(resizing, fit=fit))
    samples = ordered_map(ThreadPoolExecutor(threads), resize, _read(packed), ahead=4 * threads)
    for number, sample in enumerate(samples):
        writer.add(f"{number:09d}", sample.images, sample.label, sample.caption)
        counter.add(1)
    return len(writer.finish().shards)


def _read(packed: ShardSet) -> Iterator[_Encoded]:
    """Yield the samples of all shards in order, reading each shard once."""
    for number, shard in enumerate(packed.index.shards):
        reader, table = HashingReader(packed.storage, shard.name), packed.table(number)
        columns = [column.tolist() for column in table]
        for index, (start, end, crc32) in enumerate(zip(*columns, strict=True)):
            reader.take(start)
            data = reader.take(end)
            if zlib.crc32(data) != crc32:  # it may have been corrupted on the way
                data = packed.read_bytes(number, index)
            yield _Encoded(packed.describe(number, index), data)


def _resize(packed: ShardSet, resizing: Resizing, sample: _Encoded) -> _Resized:
    where = sample.where
    members = packed.split_members(sample.data, where)
    images = {}
    for name in packed.fields:
        pixels = packed.decode_image(members[name], f"{where}, {name}", resizing.size, resizing.fit)
        image = Image.fromarray(pixels[:, :, 0] if packed.channels == 1 else pixels)
        images[name] = to_png(image) if resizing.jpeg is None else to_jpeg(image, resizing.jpeg)
    return _Resized(
        images,
        packed.parse_label(members[LABEL], where) if LABEL in members else None,
        packed.parse_caption(members[CAPTION], where) if CAPTION in members else None,
    )
