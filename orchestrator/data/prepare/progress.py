"""Count the progress of several threads and report it at intervals."""

import threading
import time

from orchestrator.data.format.shard_index import ProgressCallback

INTERVAL_S = 0.1


class ProgressCounter:
    """Thread-safe counter that calls ``progress(done, total)``, at most every 0.1 s."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._total, self._progress = total, progress
        self._done, self._reported_at = 0, 0.0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add ``count`` to what is done; the call that completes the total always reports."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            due = self._done >= self._total or now - self._reported_at >= INTERVAL_S
            if self._progress is not None and due:
                self._reported_at = now
                self._progress(self._done, self._total)
