"""Copy packed sets between storages shard by shard, verifying every byte.

The index is written last and nothing is overwritten, so an interrupted copy can be resumed: valid
shards that exist at the destination are not copied again.
"""

import hashlib
import shlex
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from orchestrator.data.format.index_entries import Shard
from orchestrator.data.format.shard_index import INDEX, ProgressCallback, ShardSet, open_set
from orchestrator.data.format.tar_reader import HashingReader
from orchestrator.data.format.write_once import put_once
from orchestrator.data.prepare.check import find_sets
from orchestrator.data.prepare.pack_report import REPORT_FILE
from orchestrator.data.prepare.parallel import ProgressCounter, ordered_map
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

MAX_THREADS = 8
MEMORY = 1 << 30
"""Bytes of shards in memory at a time, unless a single shard is larger."""
EXTRA_FILES = ("LICENSE.txt", "README.md", REPORT_FILE)
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

    @classmethod
    def of(cls, sets: Mapping[str, ShardSet], num_shards: int, num_kept: int) -> "CopySummary":
        """Summarize a copy of ``sets``, which ``open_sets`` returned."""
        num_samples = sum(packed.num_samples for packed in sets.values())
        return cls(tuple(sets)[::-1], num_samples, num_shards, num_kept)


def copy_sets(source: str, dest: str, progress: ProgressCallback | None = None) -> CopySummary:
    """Copy the set at ``source`` to ``dest``, or SOURCE/train and SOURCE/validation.

    ``progress`` is called with the number of bytes. Raises DataError if there is no set, it is
    corrupt, or ``dest`` holds other content.
    """
    source, dest = source.rstrip("/"), dest.rstrip("/")
    sets = open_sets(source, dest)
    if dest in sets and (part := sets[dest]).index.subset is not None:
        raise DataError(
            f"{part.uri} is a part of the tar files at {part.storage.uri}: copy that, with all "
            "parts, or give --size to write a set with tar files of its own"
        )
    shards = [(s.storage.uri, shard) for s in sets.values() for shard in s.index.shards]
    num_bytes = {(uri, shard.name): shard.num_bytes for uri, shard in shards}
    counter = ProgressCounter(sum(num_bytes.values()), progress)
    num_kept, copied = 0, set[str]()
    for target, packed in sets.items():
        shared = {name for name in copied if packed.index.subset is not None}
        tars = open_storage(dest if packed.index.subset else target)
        num_kept += _copy_set(packed, _Destination(open_storage(target), tars, shared), counter)
        copied |= {shard.name for shard in packed.index.shards}
    copy_extra_files(source, dest, sets)
    return CopySummary.of(sets, len(num_bytes), num_kept)


def open_sets(source: str, dest: str) -> dict[str, ShardSet]:
    """Open the set at ``source``, or SOURCE/train and SOURCE/validation, by what ``dest`` gets.

    The training set comes last, so that its index is written last.
    """
    found = [open_set(uri) for uri in reversed(find_sets(source))]
    return {dest + packed.uri.rstrip("/").removeprefix(source): packed for packed in found}


def copy_extra_files(source: str, dest: str, sets: Collection[str]) -> None:
    """Copy the EXTRA_FILES that exist beside ``sets``, unless ``dest`` is itself one of them."""
    for name in EXTRA_FILES if dest not in sets else ():
        with suppress(NotFound):
            open_storage(dest).put_if_absent(name, open_storage(source).get(name))


class _Destination(NamedTuple):
    """Where a set is copied to."""

    set: Storage
    tars: Storage
    """The same, or its parent for a set with some of the samples of its tar files."""
    copied: Collection[str]
    """Tar files that were copied with another set."""


def _copy_set(packed: ShardSet, dest: _Destination, counter: ProgressCounter) -> int:
    """Copy one set and return how many of its shards were at the destination already."""
    target, index = dest.set, packed.storage.get(packed.table_prefix + INDEX)
    advice = f"remove {target.uri}, or choose another destination"
    if target.exists(INDEX) and target.get(INDEX) != index:
        raise DataError(f"there is another packed set at {target.uri}; {advice}")
    largest = max((shard.num_bytes for shard in packed.index.shards), default=1)
    threads = max(1, min(MAX_THREADS, MEMORY // largest))
    copy = partial(_copy_shard, packed, dest, counter=counter, advice=advice)
    pool = ThreadPoolExecutor(threads)
    num_kept = sum(ordered_map(pool, copy, packed.index.shards, ahead=threads))
    put_once(target, INDEX, index, advice)
    return num_kept


def _copy_shard(
    packed: ShardSet, dest: _Destination, shard: Shard, *, counter: ProgressCounter, advice: str
) -> bool:
    """Copy one shard and its table; return whether the shard was at the destination already."""
    is_shared = shard.name in dest.copied
    kept = not is_shared and _is_valid_copy(dest.tars, shard)
    if not kept and not is_shared:
        data = packed.storage.get_valid(
            shard.name, lambda d: hashlib.sha256(d).hexdigest() == shard.sha256
        )
        if data is None:
            raise _corrupt(packed, shard.name, "sha256")
        put_once(dest.tars, shard.name, data, advice)
    table = packed.storage.get_valid(
        packed.table_prefix + shard.table, lambda d: zlib.crc32(d) == shard.table_crc32
    )
    if table is None:
        raise _corrupt(packed, shard.table, "CRC-32")
    put_once(dest.set, shard.table, table, advice)
    if not is_shared:
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
