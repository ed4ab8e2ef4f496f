"""A cache on a local disk for ranges of objects that are read again and again.

    cached = CachedStorage(storage, Path("/mnt/nvme/cache"), limit_bytes=200 << 30, entries=...)

An object is kept in blocks of 1 MiB, one file each, ``<sha256 of the object>/<number>.block``, so
that equal objects share them and a replaced one is never mixed with its successor. All processes
of a machine may use one folder; none waits for another. What is in it may be removed at any time.
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
"""In front of a block's bytes: MAGIC, their CRC-32 and their number."""
MAGIC = b"blk1"
TOUCH_EVERY_S = 60.0
"""How exactly a block's age is known, in exchange for a write to the disk at each hit."""
KEPT = 0.9
"""The share of the limit that is left when blocks are removed."""
LOOK_EVERY = 20
"""The folder is looked through when this process has added the limit's 20th part."""
STOP_AT = 4
"""Nothing is added after the limit's 4th part, lest a slow look of another lets it grow on."""
ASIDE_MAX_AGE_S = 3600.0
"""An unfinished file as old as this belongs to a process that was killed."""

_FOLDER = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """What must be known of an object to cache it."""

    sha256: str
    num_bytes: int


class CachedStorage(WrappedStorage):
    """Another storage, with blocks of the objects in ``entries`` kept in ``folder``.

    ``get_range`` asks the storage for what is missing there; all else is the storage's own. The
    folder may grow past ``limit_bytes`` by a 20th for each process, at worst by a 4th, before the
    blocks that were not used for longest are removed. A folder that cannot be used ends the
    caching in this process, with one warning, and no read.
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
        # Threads that miss one block at the same time must not all fetch it.
        self._fetching = tuple(threading.Lock() for _ in range(64))

    def __reduce__(self) -> tuple[Any, ...]:
        blocks = self._blocks
        given = (self.inner, blocks.folder, blocks.limit_bytes, self._entries, self.counters)
        return CachedStorage, given

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``: one read of the storage for each gap."""
        entry = self._entries.get(key)
        known = entry is not None and length and start + length <= entry.num_bytes
        if entry is None or not known or self._blocks.off:
            return self.inner.get_range(key, start, length)
        self._blocks.tidy_if_due()
        numbers = range(start // BLOCK, (start + length - 1) // BLOCK + 1)
        found = self._blocks.load_all(entry, numbers)
        self.counters.add(cache_hits=len(found), cache_misses=len(numbers) - len(found))
        for run in _runs([number for number in numbers if number not in found]):
            found |= self._fetch(key, entry, run)
        whole = b"".join(found[number] for number in numbers)
        first = start - numbers[0] * BLOCK
        return whole[first : first + length]

    def forget(self, key: str, start: int, length: int) -> None:
        """Drop the blocks that hold these bytes, which were found to be damaged."""
        entry = self._entries.get(key)
        if entry is not None and length:
            for number in range(start // BLOCK, (start + length - 1) // BLOCK + 1):
                self._blocks.drop(entry, number)

    def _fetch(self, key: str, entry: CacheEntry, run: range) -> dict[int, bytes]:
        """The blocks of ``run``, in one read, unless another thread has just fetched them."""
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
    """``numbers``, which rise, as ranges of neighbours."""
    # Neighbours differ from their places in the list by the same number.
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        block = [number for _, number in run]
        yield range(block[0], block[-1] + 1)


class _Blocks:
    """The files of a cache's folder."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.off = False
        self._lock = threading.Lock()
        self._added = limit_bytes  # so that the first use looks through the folder

    def load_all(self, entry: CacheEntry, numbers: range) -> dict[int, bytes]:
        """Those of the blocks that are there and whole."""
        loaded = ((number, self.load(entry, number)) for number in numbers)
        return {number: data for number, data in loaded if data is not None}

    def load(self, entry: CacheEntry, number: int) -> bytes | None:
        """A block, or None if it is not there or damaged; then it is removed."""
        path = self._path(entry, number)
        try:
            with path.open("rb") as file:
                content = file.read()
                if time.time() - os.fstat(file.fileno()).st_mtime > TOUCH_EVERY_S:
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            self._turn_off(error)
            return None
        data = content[HEADER.size :]
        expected = HEADER.pack(MAGIC, zlib.crc32(data), _length(entry, number))
        if len(data) == _length(entry, number) and content[: HEADER.size] == expected:
            return data
        self.drop(entry, number)
        return None

    def store(self, entry: CacheEntry, number: int, data: bytes) -> None:
        """Keep a block, if the folder can be written and is not far too full already."""
        if self.off or self._added * STOP_AT > self.limit_bytes:
            return
        path = self._path(entry, number)
        aside = path.with_name(f"{uuid.uuid4().hex}.aside")
        content = HEADER.pack(MAGIC, zlib.crc32(data), len(data)) + data
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(content)
                os.replace(aside, path)
            except FileNotFoundError:  # another process has just removed the empty folder
                return
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._turn_off(error)
        with self._lock:
            self._added += len(content)

    def drop(self, entry: CacheEntry, number: int) -> None:
        """Remove a block, if it is there."""
        with contextlib.suppress(OSError):
            self._path(entry, number).unlink()

    def tidy_if_due(self) -> None:
        """Remove the oldest blocks if there may be too many, unless another is just doing so."""
        if self._added * LOOK_EVERY < self.limit_bytes or self.off:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with self._lock:
                    self._added = 0
                self._tidy()
        except BlockingIOError:
            return
        except OSError as error:
            self._turn_off(error)

    def _tidy(self) -> None:
        """Two looks through the folder: its blocks are too many to keep a list of."""
        bytes_by_second: Counter[int] = Counter()
        for _, second, size in self._scan():
            bytes_by_second[second] += size
        excess = bytes_by_second.total() - int(self.limit_bytes * KEPT)
        if bytes_by_second.total() <= self.limit_bytes:
            return
        newest = 0
        for second in sorted(bytes_by_second):
            newest = second
            if bytes_by_second[second] >= excess:
                break
            excess -= bytes_by_second[second]
        for path, second, size in self._scan():
            if second < newest or (second == newest and excess > 0):
                excess -= size if second == newest else 0
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _scan(self) -> Iterator[tuple[str, int, int]]:
        """Path, second of last use and size of each block; leftovers of others are removed."""
        for folder in os.scandir(self.folder):
            if not _FOLDER.fullmatch(folder.name):
                continue
            with contextlib.suppress(OSError):  # only an empty one goes
                os.rmdir(folder)
            with contextlib.suppress(FileNotFoundError):
                for file in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        found = file.stat()
                        if file.name.endswith(".block"):
                            yield file.path, int(found.st_mtime), found.st_size
                        elif time.time() - found.st_mtime > ASIDE_MAX_AGE_S:
                            os.unlink(file)

    def _path(self, entry: CacheEntry, number: int) -> Path:
        return self.folder / entry.sha256 / f"{number:06}.block"

    def _turn_off(self, error: OSError) -> None:
        with self._lock:
            was, self.off = self.off, True
        if not was:
            logger.warning(
                "the cache in %s is not used any more (%s): reads go on without it; check the "
                "folder's permissions and the space on its disk, or set a lower limit",
                self.folder,
                error.strerror or error,
            )


def _length(entry: CacheEntry, number: int) -> int:
    return min(BLOCK, entry.num_bytes - number * BLOCK)
