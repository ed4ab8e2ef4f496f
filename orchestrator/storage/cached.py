"""Cache object ranges on a local disk.

    cached = CachedStorage(storage, Path("/mnt/nvme/cache"), limit_bytes=200 << 30, entries=...)

Each object is stored in blocks of 1 MiB, one file each, ``<sha256 of the object>/<number>.block``,
so that equal objects share blocks and two versions of an object are never mixed. All processes of a
machine may use one folder without waiting for each other. Its files may be removed at any time.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import re
import struct
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.storage.base import Storage, WrappedStorage
from orchestrator.storage.retrying import ReadCounters

BLOCK = 1 << 20
HEADER = struct.Struct("<4sII")
"""Precedes the bytes of a block: MAGIC, their CRC-32 and their number."""
MAGIC = b"blk1"
TOUCH_INTERVAL_S = 60.0
"""Least time between two updates of a block's time of use, each of which is a disk write."""
KEPT_FRACTION = 0.9
"""Fraction of the limit that is kept when blocks are evicted."""
SCANS_PER_LIMIT = 20
"""The folder is scanned each time this process has added 1/20 of the limit."""
MAX_ADDED_PER_LIMIT = 4
"""Stop adding after 1/4 of the limit, so that the folder cannot grow during another's slow scan."""
TEMPORARY_MAX_AGE_S = 3600.0
"""A temporary file older than this was left by a killed process."""

_FOLDER = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """Checksum and size of an object, which are needed to cache it."""

    sha256: str
    num_bytes: int


class CachedStorage(WrappedStorage):
    """Storage that caches blocks of the objects in ``entries`` in ``folder``.

    ``get_range`` reads missing blocks from ``inner``; other methods are not cached. Each process
    may exceed ``limit_bytes`` by 1/20, at worst by 1/4, before the least recently used blocks are
    removed. If the folder cannot be used, this process stops caching with one warning, and reads
    still work.
    """

    def __init__(
        self,
        inner: Storage,
        folder: Path,
        limit_bytes: int,
        entries: Mapping[str, CacheEntry],
        counters: ReadCounters | None = None,
    ) -> None:
        super().__init__(inner)
        self.counters = counters or ReadCounters()
        self._entries = entries
        self._blocks = _Blocks(folder, limit_bytes)
        # Threads that miss the same block must not all fetch it.
        self._fetching = tuple(threading.Lock() for _ in range(64))

    def __reduce__(self) -> tuple[Any, ...]:
        blocks = self._blocks
        arguments = (self.inner, blocks.folder, blocks.limit_bytes, self._entries, self.counters)
        return CachedStorage, arguments

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``, with one read per gap in the cache."""
        entry = self._entries.get(key)
        if (
            entry is None
            or not length
            or start + length > entry.num_bytes
            or self._blocks.is_disabled
        ):
            return self.inner.get_range(key, start, length)
        self._blocks.evict_if_due()
        numbers = range(start // BLOCK, (start + length - 1) // BLOCK + 1)
        found = self._blocks.load_all(entry, numbers)
        self.counters.add(cache_hits=len(found), cache_misses=len(numbers) - len(found))
        for run in _runs([number for number in numbers if number not in found]):
            found |= self._fetch(key, entry, run)
        whole = b"".join(found[number] for number in numbers)
        first = start - numbers[0] * BLOCK
        return whole[first : first + length]

    def invalidate(self, key: str, start: int, length: int) -> None:
        """Remove the blocks with these bytes, which turned out to be corrupt."""
        entry = self._entries.get(key)
        if entry is not None and length:
            for number in range(start // BLOCK, (start + length - 1) // BLOCK + 1):
                self._blocks.remove(entry, number)

    def _fetch(self, key: str, entry: CacheEntry, run: range) -> dict[int, bytes]:
        """Read the blocks of ``run`` at once, unless another thread has just fetched them."""
        with self._fetching[hash((key, run[0])) % len(self._fetching)]:
            found = self._blocks.load_all(entry, run)
            if len(found) == len(run):
                return found
            start = run[0] * BLOCK
            data = self.inner.get_range(key, start, min(run.stop * BLOCK, entry.num_bytes) - start)
            blocks = {n: data[n * BLOCK - start : (n + 1) * BLOCK - start] for n in run}
            for number, block in blocks.items():
                self._blocks.store(entry, number, block)
        return blocks


def _runs(numbers: list[int]) -> Iterator[range]:
    """Group ascending ``numbers`` into ranges of consecutive ones."""
    # Consecutive numbers have the same difference to their index in the list.
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        block = [number for _, number in run]
        yield range(block[0], block[-1] + 1)


class _Blocks:
    """Block files in the folder of a cache."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.is_disabled = False
        self._lock = threading.Lock()
        self._added = limit_bytes  # so that the first use scans the folder

    def load_all(self, entry: CacheEntry, numbers: range) -> dict[int, bytes]:
        """Return the blocks that exist and are intact, by number."""
        loaded = ((number, self.load(entry, number)) for number in numbers)
        return {number: data for number, data in loaded if data is not None}

    def load(self, entry: CacheEntry, number: int) -> bytes | None:
        """Return a block, or None if it is missing or corrupt; a corrupt one is removed."""
        path = self._path(entry, number)
        try:
            with path.open("rb") as file:
                content = file.read()
                if time.time() - os.fstat(file.fileno()).st_mtime > TOUCH_INTERVAL_S:
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            self._disable(error)
            return None
        data = content[HEADER.size :]
        expected = HEADER.pack(MAGIC, zlib.crc32(data), _length(entry, number))
        if len(data) == _length(entry, number) and content[: HEADER.size] == expected:
            return data
        self.remove(entry, number)
        return None

    def store(self, entry: CacheEntry, number: int, data: bytes) -> None:
        """Write a block, unless the folder cannot be used or is far too full already."""
        if self.is_disabled or self._added * MAX_ADDED_PER_LIMIT > self.limit_bytes:
            return
        path = self._path(entry, number)
        temporary = path.with_name(f"{uuid.uuid4().hex}.aside")
        content = HEADER.pack(MAGIC, zlib.crc32(data), len(data)) + data
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            except FileNotFoundError:  # another process has just removed the empty folder
                return
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._disable(error)
        with self._lock:
            self._added += len(content)

    def remove(self, entry: CacheEntry, number: int) -> None:
        """Remove a block if it exists."""
        with contextlib.suppress(OSError):
            self._path(entry, number).unlink()

    def evict_if_due(self) -> None:
        """Remove the oldest blocks if there may be too many, unless another process does so now."""
        if self._added * SCANS_PER_LIMIT < self.limit_bytes or self.is_disabled:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with self._lock:
                    self._added = 0
                self._evict()
        except BlockingIOError:
            return
        except OSError as error:
            self._disable(error)

    def _evict(self) -> None:
        """Scan the folder twice, because a list of all its blocks would take too much memory."""
        bytes_by_second: Counter[int] = Counter()
        for _, second, size in self._scan():
            bytes_by_second[second] += size
        excess = bytes_by_second.total() - int(self.limit_bytes * KEPT_FRACTION)
        if bytes_by_second.total() <= self.limit_bytes:
            return
        for newest in sorted(bytes_by_second):
            if bytes_by_second[newest] >= excess:
                break
            excess -= bytes_by_second[newest]
        for path, second, size in self._scan():
            if second < newest or (second == newest and excess > 0):
                excess -= size if second == newest else 0
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _scan(self) -> Iterator[tuple[str, int, int]]:
        """Yield path, second of last use and size of each block; remove leftovers of others."""
        for folder in os.scandir(self.folder):
            if not _FOLDER.fullmatch(folder.name):
                continue
            with contextlib.suppress(OSError):  # succeeds for an empty folder only
                os.rmdir(folder)
            with contextlib.suppress(FileNotFoundError):
                for file in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        found = file.stat()
                        if file.name.endswith(".block"):
                            yield file.path, int(found.st_mtime), found.st_size
                        elif time.time() - found.st_mtime > TEMPORARY_MAX_AGE_S:
                            os.unlink(file)

    def _path(self, entry: CacheEntry, number: int) -> Path:
        return self.folder / entry.sha256 / f"{number:06}.block"

    def _disable(self, error: OSError) -> None:
        with self._lock:
            was_disabled, self.is_disabled = self.is_disabled, True
        if not was_disabled:
            logger.warning(
                "disabled the cache in %s (%s): reads continue without it; check the "
                "folder's permissions and the free space on its disk, or set a lower limit",
                self.folder,
                error.strerror or error,
            )


def _length(entry: CacheEntry, number: int) -> int:
    return min(BLOCK, entry.num_bytes - number * BLOCK)
