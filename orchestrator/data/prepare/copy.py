"""Copies packed sets between places, shard by shard, every byte verified on the way.

The index goes last and nothing is written over, so that an interrupted copy can go on: shards
that are there whole are not copied again.
"""

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from orchestrator.data.format.shard_index import INDEX, Progress, Shard, ShardSet, open_set
from orchestrator.data.format.tar_reader import Tape
from orchestrator.data.format.write_once import put_once
from orchestrator.data.prepare.check import sets_at
from orchestrator.data.prepare.ordered_map import in_order
from orchestrator.data.prepare.progress import Tally
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

MOST_THREADS = 8
MEMORY = 1 << 30
"""Bytes of the shards that are held at a time, unless one alone is larger."""
BESIDE = ("LICENSE.txt", "README.md")
"""What packing writes beside the sets."""


@dataclass(frozen=True)
class CopySummary:
    """What was copied."""

    uris: tuple[str, ...]
    """The sets that are there now."""
    num_samples: int
    num_shards: int
    num_kept: int
    """Of the shards, how many were there already."""


def copy_sets(source: str, dest: str, progress: Progress | None = None) -> CopySummary:
    """Copy the set at ``source`` to ``dest``, or the sets of the folder above train and validation.

    Args:
        progress: called with the bytes copied and the bytes there are.

    Raises:
        DataError: there is no set, it is damaged, or something else is at ``dest``.
    """
    source, dest = source.rstrip("/"), dest.rstrip("/")
    found = sets_at(source)
    sets = [open_set(uri) for uri in reversed(found)]  # the training set's index goes last
    tally = Tally(sum(packed.num_bytes for packed in sets), progress)
    uris, kept = [], 0
    for packed in sets:
        there = dest + packed.uri.rstrip("/").removeprefix(source)
        kept += _copy(packed, open_storage(there), tally)
        uris.append(there)
    if found != [source]:
        for name in BESIDE:
            _copy_beside(open_storage(source), open_storage(dest), name)
    return CopySummary(
        tuple(reversed(uris)),
        sum(packed.num_samples for packed in sets),
        sum(len(packed.index.shards) for packed in sets),
        kept,
    )


def _copy(packed: ShardSet, there: Storage, tally: Tally) -> int:
    """Copy one set; gives how many of its shards were there already."""
    index = packed.storage.get(INDEX)
    advice = f"remove {there.uri}, or choose another place"
    if there.exists(INDEX) and there.get(INDEX) != index:
        raise DataError(f"there is another packed set at {there.uri}; {advice}")
    largest = max((shard.num_bytes for shard in packed.index.shards), default=1)
    threads = max(1, min(MOST_THREADS, MEMORY // largest))
    copy = partial(_copy_shard, packed, there, tally=tally, advice=advice)
    pool = ThreadPoolExecutor(threads)
    kept = sum(in_order(pool, copy, packed.index.shards, ahead=threads))
    put_once(there, INDEX, index, advice)
    return kept


def _copy_shard(
    packed: ShardSet, there: Storage, shard: Shard, *, tally: Tally, advice: str
) -> bool:
    """Copy one shard and its table, unless it is there whole: gives whether it was."""
    kept = _is_there(there, shard)
    if not kept:
        data = packed.storage.get(shard.name)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise _damaged(packed, shard.name, "sha256")
        put_once(there, shard.name, data, advice)
    table = packed.storage.get(shard.table)
    if zlib.crc32(table) != shard.table_crc32:
        raise _damaged(packed, shard.table, "CRC-32")
    put_once(there, shard.table, table, advice)
    tally.add(shard.num_bytes)
    return kept


def _is_there(there: Storage, shard: Shard) -> bool:
    try:
        tape = Tape(there, shard.name)
    except NotFound:
        return False
    return tape.num_bytes == shard.num_bytes and tape.sha256() == shard.sha256


def _damaged(packed: ShardSet, name: str, what: str) -> DataError:
    return DataError(
        f"{packed.uri}/{name} is damaged: its {what} is not the index's; see "
        f"`orchestrator data check {packed.uri}`"
    )


def _copy_beside(here: Storage, there: Storage, name: str) -> None:
    try:
        there.put_if_absent(name, here.get(name))
    except NotFound:
        return
