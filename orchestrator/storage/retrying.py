"""Storage that retries reads, so that transient errors delay a read and do not end the run.

    storage = RetryingStorage(open_storage(uri), timeout_s=600)

It counts reads and knows which ones are pending, so that a stalled run can report why.
"""

import contextlib
import itertools
import logging
import operator
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.errors import DataError, EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.storage.base import Storage, WrappedStorage

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0
"""Bounds of the random pause between two attempts, so that workers do not retry in step."""
REFUSAL_TIMEOUT_S = 30.0
"""How long a refusal is retried where a read worked before: credentials may be being renewed."""
LOG_INTERVAL_S = 30.0
"""Least time between two warnings about failing reads."""

logger = logging.getLogger(__name__)


class ReadCounts(NamedTuple):
    """Totals of the reads so far."""

    bytes_read: int = 0
    """Bytes that the storage returned."""
    requests: int = 0
    """Reads sent to the storage, including retries."""
    retries: int = 0
    cache_hits: int = 0
    """Blocks found in a local cache."""
    cache_misses: int = 0


class ReadCounters:
    """Read counters shared by all threads of a process; a pickled copy starts at zero."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = ReadCounts()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadCounters, ()

    def add(self, **counts: int) -> None:
        """Add ``counts``, named as in ReadCounts."""
        with self._lock:
            self._counts = ReadCounts(*map(operator.add, self._counts, ReadCounts(**counts)))

    def snapshot(self) -> ReadCounts:
        """Return the current counts."""
        with self._lock:
            return self._counts


@dataclass
class _PendingRead:
    """A read that has not finished."""

    description: str
    started: float
    attempt: int = 1
    last_error: str = ""
    """Why the previous attempt failed; empty during the first."""
    refused_since: float | None = None

    def age_s(self) -> float:
        return time.monotonic() - self.started


class RetryingStorage(WrappedStorage):
    """Storage that retries the reads of ``inner`` for ``timeout_s`` after transient errors.

    ``get`` and ``get_range`` raise DataError after the timeout, and NotFound or a DataError of
    ``inner`` at once. A refusal (EnvironmentProblem) is raised at once too, unless an earlier read
    succeeded: then it is retried for REFUSAL_TIMEOUT_S. A read takes at most the timeout plus one
    attempt. Other methods are not retried.
    """

    def __init__(
        self, inner: Storage, timeout_s: float, counters: ReadCounters | None = None
    ) -> None:
        super().__init__(inner)
        self.counters = counters or ReadCounters()
        self._timeout_s = timeout_s
        self._log = _FailureLog(inner.uri, timeout_s)
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._pending: dict[int, _PendingRead] = {}
        self._has_read = False
        self._closed = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryingStorage, (self.inner, self._timeout_s, self.counters)

    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``."""
        return self._read(f"{self.uri}/{key}", lambda: self.inner.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``."""
        description = f"{self.uri}/{key} bytes {start}-{start + length - 1}"
        return self._read(description, lambda: self.inner.get_range(key, start, length))

    def oldest_request(self) -> str | None:
        """Describe the read that has been pending longest and its state; None without one."""
        with self._lock:
            oldest = min(self._pending.values(), key=lambda read: read.started, default=None)
            if oldest is None:
                return None
            text = f"{oldest.description}, {oldest.age_s():.0f} s, attempt {oldest.attempt}"
            return f"{text}, last: {oldest.last_error}" if oldest.last_error else text

    def close(self) -> None:
        """Stop retrying, in pending and later reads: they raise the next error as it is."""
        self._closed.set()

    # Not retry.retry: close() interrupts the pause, and a refusal shortens the deadline.
    def _read(self, description: str, read: Callable[[], bytes]) -> bytes:
        with self._registered(description) as pending:
            pause_s = MIN_PAUSE_S
            while True:
                self.counters.add(requests=1, retries=pending.attempt > 1)
                try:
                    data = read()
                except (TryAgain, EnvironmentProblem) as error:
                    self._pause_or_raise(pending, error, pause_s)
                    pause_s = _jitter.uniform(MIN_PAUSE_S, min(MAX_PAUSE_S, 3 * pause_s))
                else:
                    self._has_read = True
                    self.counters.add(bytes_read=len(data))
                    return data

    def _pause_or_raise(
        self, pending: _PendingRead, error: OrchestratorError, pause_s: float
    ) -> None:
        """Wait for the next attempt. Raises ``error``, or DataError after the timeout."""
        if self._closed.is_set() or not (error.retry or self._has_read):
            raise error
        reason, left_s = self._reason(error), self._timeout_s - pending.age_s()
        with self._lock:
            pending.last_error = reason
            now = time.monotonic()
            pending.refused_since = None if error.retry else pending.refused_since or now
            if pending.refused_since is not None:
                left_s = min(left_s, pending.refused_since + REFUSAL_TIMEOUT_S - now)
        if left_s <= 0:
            raise DataError(
                f"{pending.description} could not be read for {pending.age_s():.0f} s, in "
                f"{pending.attempt} attempts; the last error: {reason}. Check that the storage is "
                "up and that this machine can reach it and may read from it, then start again: "
                "the run resumes from its newest checkpoint"
            ) from error
        self._log.failed(reason)
        if self._closed.wait(min(pause_s, left_s)):
            raise error
        with self._lock:
            pending.attempt += 1

    def _reason(self, error: OrchestratorError) -> str:
        """Return the error without the URI, which is printed beside it, and without advice."""
        return str(error).removeprefix(self.uri).lstrip("/: ").partition("; ")[0]

    @contextlib.contextmanager
    def _registered(self, description: str) -> Iterator[_PendingRead]:
        read, read_id = _PendingRead(description, time.monotonic()), next(self._ids)
        with self._lock:
            self._pending[read_id] = read
        succeeded = False
        try:
            yield read
            succeeded = True
        finally:
            with self._lock:
                del self._pending[read_id]
                is_retrying = any(other.last_error for other in self._pending.values())
            if read.last_error and not is_retrying:
                self._log.ended(succeeded)


class _FailureLog:
    """Log when reads start to fail and when they work again; one outage may span many reads."""

    def __init__(self, uri: str, timeout_s: float) -> None:
        self._uri, self._timeout_s = uri, timeout_s
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._is_logged = False
        self._last_logged = -float("inf")

    def failed(self, reason: str) -> None:
        """Record a failed attempt that will be retried."""
        now = time.monotonic()
        with self._lock:
            if self._failing_since is None:
                self._failing_since, self._is_logged = now, False
            if self._is_logged or now - self._last_logged < LOG_INTERVAL_S:
                return
            self._is_logged, self._last_logged = True, now
        logger.warning(
            "reads from %s fail (%s); retrying for up to %.0f s", self._uri, reason, self._timeout_s
        )

    def ended(self, succeeded: bool) -> None:
        """Record that no read is being retried: the last one ``succeeded`` or was given up."""
        with self._lock:
            since, is_logged = self._failing_since, self._is_logged
            self._failing_since = None
        if succeeded and is_logged and since is not None:
            outage_s = time.monotonic() - since
            logger.warning("reads from %s work again after %.0f s", self._uri, outage_s)


_jitter = random.Random()
