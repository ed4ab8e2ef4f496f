"""Table of the samples of a shard: a binary file with 8 bytes per sample, or 12.

``000000.tar.idx`` holds two little-endian 32-bit numbers per sample: its size in tar blocks of 512
bytes, and the CRC-32 of its bytes. The samples are contiguous, starting at byte 0 of the shard.
In a set with some of the samples of its tar files, a third number precedes them: the blocks between
the previous sample of the set and this one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from orchestrator.data.format.tar_headers import BLOCK
from orchestrator.errors import DataError

SUFFIX = ".idx"
_ENTRY = numpy.dtype([("blocks", "<u4"), ("crc32", "<u4")])
_ENTRY_WITH_GAP = numpy.dtype([("gap", "<u4"), *_ENTRY.descr])
ENTRY_BYTES = _ENTRY.itemsize

Integers = NDArray[numpy.int64]


class SampleTable(NamedTuple):
    """Offsets and checksums of the samples of a shard."""

    starts: Integers
    """Start of each sample in bytes, ascending."""
    ends: Integers
    crc32: NDArray[numpy.uint32]
    """CRC-32 of each sample's bytes."""


def encode(offsets: Sequence[int], crc32: Sequence[int]) -> bytes:
    """Encode the table of the samples between these ``offsets``, which are multiples of 512."""
    entries = numpy.empty(len(crc32), _ENTRY)
    entries["blocks"] = numpy.diff(numpy.asarray(offsets, numpy.int64)) // BLOCK
    entries["crc32"] = crc32
    return entries.tobytes()


def encode_subset(table: SampleTable) -> bytes:
    """Encode the table of some of the samples of a shard."""
    entries = numpy.empty(len(table.crc32), _ENTRY_WITH_GAP)
    entries["gap"] = (table.starts - numpy.concatenate(([0], table.ends[:-1]))) // BLOCK
    entries["blocks"] = (table.ends - table.starts) // BLOCK
    entries["crc32"] = table.crc32
    return entries.tobytes()


def decode(
    data: bytes, num_samples: int, num_bytes: int, where: str, *, is_subset: bool = False
) -> SampleTable:
    """Decode the table of a shard of ``num_bytes``. Raises DataError, prefixed by ``where``."""
    kind = _ENTRY_WITH_GAP if is_subset else _ENTRY
    if len(data) != num_samples * kind.itemsize:
        raise DataError(f"{where} is corrupt: it is not a table of {num_samples} samples")
    entries = numpy.frombuffer(data, kind)
    sizes = entries["blocks"].astype(numpy.int64) * BLOCK
    gaps = entries["gap"].astype(numpy.int64) * BLOCK if is_subset else numpy.zeros_like(sizes)
    ends = numpy.cumsum(sizes + gaps)
    if (sizes == 0).any() or (len(ends) and ends[-1] > num_bytes):
        raise DataError(f"{where} is corrupt: its samples extend beyond the shard")
    return SampleTable(ends - sizes, ends, entries["crc32"])
