"""Where each sample of a shard is: a binary file beside the shard, 8 bytes a sample.

``000000.tar.idx`` holds for each sample two little-endian 32-bit numbers: its size in tar blocks
of 512 bytes, and the CRC-32 of its bytes. Samples lie one after the other from byte 0.
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


class Table(NamedTuple):
    """Where the samples of a shard are."""

    offsets: NDArray[numpy.int64]
    """Where each sample starts, in bytes, and last where the samples end."""
    crc32: NDArray[numpy.uint32]
    """CRC-32 of each sample's bytes."""


def encoded(offsets: Sequence[int], crc32: Sequence[int]) -> bytes:
    """The table of samples between these ``offsets``, which are multiples of 512."""
    entries = numpy.empty(len(crc32), _ENTRY)
    entries["blocks"] = numpy.diff(numpy.asarray(offsets, numpy.int64)) // BLOCK
    entries["crc32"] = crc32
    return entries.tobytes()


def decoded(data: bytes, num_samples: int, num_bytes: int, where: str) -> Table:
    """The table in ``data``, for a shard of ``num_bytes``. Raises DataError, at ``where``."""
    if len(data) != num_samples * _ENTRY.itemsize:
        raise DataError(f"{where} is damaged: it is not the table of {num_samples} samples")
    entries = numpy.frombuffer(data, _ENTRY)
    sizes = entries["blocks"].astype(numpy.int64) * BLOCK
    offsets = numpy.concatenate(([0], numpy.cumsum(sizes)))
    if (sizes == 0).any() or offsets[-1] > num_bytes:
        raise DataError(f"{where} is damaged: its samples do not lie within the shard")
    return Table(offsets, entries["crc32"])
