"""Copy packed sets between storages shard by shard, verifying every byte.

The index is written last and nothing is overwritten, so an interrupted copy can be resumed: valid
shards that exist at the destination are not copied again.
"""

import hashlib
import shlex
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from orchestrator.data.format.shard_index import INDEX, ProgressCallback, Shard, ShardSet, open_set
from orchestrator.data.format.tar_reader import HashingReader
from orchestrator.data.format.write_once import put_once
from orchestrator.data.prepare.check import find_sets
from orchestrator.data.prepare.parallel import ProgressCounter, ordered_map
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

MAX_THREADS = 8
MEMORY = 1 << 30
"""Bytes of shards in memory at a time, unless a single shard is larger."""
EXTRA_FILES = ("LICENSE.txt", "README.md")
"""Files that packing writes beside the sets."""


@dataclass(frozen=True)
class CopySummary:
    """Result of ``copy_sets``."""

    uris: tuple[str, ...]
    """The sets at the destination."""
    num_samples: int
    num_shards: int
    num_kept: int
    """Shards that were at the destination already."""


def copy_sets(source: str, dest: str, progress: ProgressCallback | None = None) -> CopySummary:
    """Copy the set at ``source`` to ``dest``, or SOURCE/train and SOURCE/validation.

    ``progress`` is called with the number of bytes. Raises DataError if there is no set, it is
    corrupt, or ``dest`` holds other content.
    """
    source, dest = source.rstrip("/"), dest.rstrip("/")
    found = find_sets(source)
    sets = [open_set(uri) for uri in reversed(found)]  # the training set's index goes last
    counter = ProgressCounter(sum(packed.num_bytes for packed in sets), progress)
    uris, num_kept = [], 0
    for packed in sets:
        target = dest + packed.uri.rstrip("/").removeprefix(source)
        num_kept += _copy_set(packed, open_storage(target), counter)
        uris.append(target)
    if found != [source]:
        for name in EXTRA_FILES:
            with suppress(NotFound):
                open_storage(dest).put_if_absent(name, open_storage(source).get(name))
    return CopySummary(
        tuple(reversed(uris)),
        sum(packed.num_samples for packed in sets),
        sum(len(packed.index.shards) for packed in sets),
        num_kept,
    )


def _copy_set(packed: ShardSet, target: Storage, counter: ProgressCounter) -> int:
    """Copy one set and return how many of its shards were at the destination already."""
    index = packed.storage.get(INDEX)
    advice = f"remove {target.uri}, or choose another destination"
    if target.exists(INDEX) and target.get(INDEX) != index:
        raise DataError(f"there is another packed set at {target.uri}; {advice}")
    largest = max((shard.num_bytes for shard in packed.index.shards), default=1)
    threads = max(1, min(MAX_THREADS, MEMORY // largest))
    copy = partial(_copy_shard, packed, target, counter=counter, advice=advice)
    pool = ThreadPoolExecutor(threads)
    num_kept = sum(ordered_map(pool, copy, packed.index.shards, ahead=threads))
    put_once(target, INDEX, index, advice)
    return num_kept


def _copy_shard(
    packed: ShardSet, target: Storage, shard: Shard, *, counter: ProgressCounter, advice: str
) -> bool:
    """Copy one shard and its table; return whether the shard was at the destination already."""
    kept = _is_valid_copy(target, shard)
    if not kept:
        data = packed.storage.get(shard.name)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise _corrupt(packed, shard.name, "sha256")
        put_once(target, shard.name, data, advice)
    table = packed.storage.get(shard.table)
    if zlib.crc32(table) != shard.table_crc32:
        raise _corrupt(packed, shard.table, "CRC-32")
    put_once(target, shard.table, table, advice)
    counter.add(shard.num_bytes)
    return kept


def _is_valid_copy(target: Storage, shard: Shard) -> bool:
    try:
        reader = HashingReader(target, shard.name)
    except NotFound:
        return False
    return reader.num_bytes == shard.num_bytes and reader.sha256() == shard.sha256


def _corrupt(packed: ShardSet, name: str, checksum: str) -> DataError:
    return DataError(
        f"{packed.uri}/{name} is corrupt: its {checksum} differs from the index; see "
        f"`orchestrator data check {shlex.quote(packed.uri)}`"
    )
