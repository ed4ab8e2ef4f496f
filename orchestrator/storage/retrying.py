"""Reading that waits: a storage whose passing faults delay a read and do not end the training.

    storage = PatientStorage(open_storage(uri), patience_s=600)

It counts what it reads and knows what it waits for, so that a run can say why it stands still.
"""

import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import DataError, EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.storage.base import Storage, WrappedStorage

SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
"""Between two attempts; drawn anew each time, lest many workers ask in step."""
REFUSED_PATIENCE_S = 30.0
"""How long a refusal is borne where reading worked before: credentials are being renewed."""
TELL_EVERY_S = 30.0
"""The least time between two warnings of trouble."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadCounts:
    """What was read until some moment."""

    bytes_read: int = 0
    """Bytes that the storage gave."""
    requests: int = 0
    """Reads that were asked of the storage, retries among them."""
    retries: int = 0
    cache_hits: int = 0
    """Blocks that a local cache had."""
    cache_misses: int = 0


class ReadCounters:
    """Counts for all threads of a process; a pickled copy starts at zero."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = ReadCounts()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadCounters, ()

    def add(
        self,
        bytes_read: int = 0,
        requests: int = 0,
        retries: int = 0,
        cache_hits: int = 0,
        cache_misses: int = 0,
    ) -> None:
        """Count so much more of each."""
        with self._lock:
            now = self._counts
            self._counts = ReadCounts(
                now.bytes_read + bytes_read,
                now.requests + requests,
                now.retries + retries,
                now.cache_hits + cache_hits,
                now.cache_misses + cache_misses,
            )

    def snapshot(self) -> ReadCounts:
        """The counts of this moment."""
        with self._lock:
            return self._counts


@dataclass
class _Read:
    """A read that is under way."""

    what: str
    started: float
    attempt: int = 1
    last: str = ""
    """Why its last attempt failed; empty while it is in its first."""
    refused_since: float | None = None

    def age_s(self) -> float:
        return time.monotonic() - self.started


class PatientStorage(WrappedStorage):
    """Another storage, whose reads are tried again for ``patience_s`` after passing faults.

    ``get`` and ``get_range`` raise DataError once their patience is over, and NotFound or a
    DataError of the storage at once. A refusal (EnvironmentProblem) passes at once too, unless
    something was read here before: then it is borne for half a minute. A read takes at most
    its patience and the time of one attempt. All else is the storage's own.
    """

    def __init__(
        self, inner: Storage, patience_s: float, counters: ReadCounters | None = None
    ) -> None:
        super().__init__(inner)
        self.counters = counters or ReadCounters()
        self._patience_s = patience_s
        self._log = _TroubleLog(inner.uri, patience_s)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._under_way: dict[int, _Read] = {}
        self._has_read = False
        self._closed = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientStorage, (self.inner, self._patience_s, self.counters)

    def get(self, key: str) -> bytes:
        """All the bytes under ``key``."""
        return self._read(f"{self.uri}/{key}", lambda: self.inner.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        what = f"{self.uri}/{key} bytes {start}-{start + length - 1}"
        return self._read(what, lambda: self.inner.get_range(key, start, length))

    def oldest_request(self) -> str | None:
        """The read that has been under way longest, and how it fares; None if there is none."""
        with self._lock:
            oldest = min(self._under_way.values(), key=lambda read: read.started, default=None)
            if oldest is None:
                return None
            told = f"{oldest.what}, {oldest.age_s():.0f} s, attempt {oldest.attempt}"
            return f"{told}, last: {oldest.last}" if oldest.last else told

    def close(self) -> None:
        """Let no read wait any more, now or later: the next fault is raised as it is."""
        self._closed.set()

    def _read(self, what: str, read: Callable[[], bytes]) -> bytes:
        with self._registered(what) as now:
            wait = SHORTEST_WAIT_S
            while True:
                self.counters.add(requests=1, retries=now.attempt > 1)
                try:
                    data = read()
                except (TryAgain, EnvironmentProblem) as error:
                    self._fail_or_wait(now, error, wait)
                    wait = _jitter.uniform(SHORTEST_WAIT_S, min(LONGEST_WAIT_S, 3 * wait))
                else:
                    self._has_read = True
                    self.counters.add(bytes_read=len(data))
                    return data

    def _fail_or_wait(self, now: _Read, error: OrchestratorError, wait: float) -> None:
        """Wait before the next attempt. Raises ``error`` or DataError if there is to be none."""
        if self._closed.is_set() or not (error.retry or self._has_read):
            raise error
        reason, left = self._reason(error), self._patience_s - now.age_s()
        with self._lock:
            now.last = reason
            now.refused_since = None if error.retry else now.refused_since or time.monotonic()
            if now.refused_since is not None:
                left = min(left, now.refused_since + REFUSED_PATIENCE_S - time.monotonic())
        if left <= 0:
            raise DataError(
                f"{now.what} could not be read for {now.age_s():.0f} s, in {now.attempt} attempts; "
                f"the last: {reason}. Check that the storage is up, that this machine reaches it "
                "and may read there, and start again: a training goes on from its newest checkpoint"
            ) from error
        self._log.failed(reason)
        if self._closed.wait(min(wait, left)):
            raise error
        with self._lock:
            now.attempt += 1

    def _reason(self, error: OrchestratorError) -> str:
        """What happened, without the place, which is told beside it, and without advice."""
        return str(error).removeprefix(self.uri).lstrip("/: ").partition("; ")[0]

    @contextlib.contextmanager
    def _registered(self, what: str) -> Iterator[_Read]:
        read, number = _Read(what, time.monotonic()), next(self._numbers)
        with self._lock:
            self._under_way[number] = read
        done = False
        try:
            yield read
            done = True
        finally:
            with self._lock:
                del self._under_way[number]
                calm = not any(other.last for other in self._under_way.values())
            if read.last and calm:
                self._log.over(worked=done)


class _TroubleLog:
    """Tells of a trouble once, and once when it is over. It lasts while any read is retried."""

    def __init__(self, uri: str, patience_s: float) -> None:
        self._uri, self._patience_s = uri, patience_s
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told = False
        self._last_told = -float("inf")

    def failed(self, reason: str) -> None:
        """An attempt failed, and there will be another."""
        now = time.monotonic()
        with self._lock:
            if self._since is None:
                self._since, self._told = now, False
            if self._told or now - self._last_told < TELL_EVERY_S:
                return
            self._told, self._last_told = True, now
        logger.warning(
            "reads from %s fail (%s); trying again for up to %.0f s",
            self._uri,
            reason,
            self._patience_s,
        )

    def over(self, worked: bool) -> None:
        """No read is being retried any more: the last of them has ``worked``, or was given up."""
        with self._lock:
            since, told = self._since, self._told
            self._since = None
        if worked and told and since is not None:
            logger.warning("reads from %s again after %.0f s", self._uri, time.monotonic() - since)


_jitter = random.Random()
