"""Table of the samples of a shard: a binary file beside it, 8 bytes per sample.

``000000.tar.idx`` holds two little-endian 32-bit numbers per sample: its size in tar blocks of 512
bytes, and the CRC-32 of its bytes. The samples are contiguous, starting at byte 0 of the shard.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from orchestrator.data.format.tar_members import BLOCK
from orchestrator.errors import DataError

SUFFIX = ".idx"
_ENTRY = numpy.dtype([("blocks", "<u4"), ("crc32", "<u4")])
ENTRY_BYTES = _ENTRY.itemsize


class SampleTable(NamedTuple):
    """Offsets and checksums of the samples of a shard."""

    offsets: NDArray[numpy.int64]
    """Start of each sample in bytes, and the end of the last one."""
    crc32: NDArray[numpy.uint32]
    """CRC-32 of each sample's bytes."""


def encode(offsets: Sequence[int], crc32: Sequence[int]) -> bytes:
    """Encode the table of the samples between these ``offsets``, which are multiples of 512."""
    entries = numpy.empty(len(crc32), _ENTRY)
    entries["blocks"] = numpy.diff(numpy.asarray(offsets, numpy.int64)) // BLOCK
    entries["crc32"] = crc32
    return entries.tobytes()


def decode(data: bytes, num_samples: int, num_bytes: int, where: str) -> SampleTable:
    """Decode the table of a shard of ``num_bytes``. Raises DataError, prefixed by ``where``."""
    if len(data) != num_samples * _ENTRY.itemsize:
        raise DataError(f"{where} is corrupt: it is not a table of {num_samples} samples")
    entries = numpy.frombuffer(data, _ENTRY)
    sizes = entries["blocks"].astype(numpy.int64) * BLOCK
    offsets = numpy.concatenate(([0], numpy.cumsum(sizes)))
    if (sizes == 0).any() or offsets[-1] > num_bytes:
        raise DataError(f"{where} is corrupt: its samples extend beyond the shard")
    return SampleTable(offsets, entries["crc32"])
