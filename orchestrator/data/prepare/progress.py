"""Adds up what several threads have done, and tells of it now and then."""

import threading
import time

from orchestrator.data.format.shard_index import Progress

INTERVAL_S = 0.1


class Tally:
    """How much of ``total`` is done; safe to share between threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._done, self._told = 0, 0.0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So much more is done."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            due = self._done >= self._total or now - self._told >= INTERVAL_S
            if self._progress is not None and due:
                self._told = now
                self._progress(self._done, self._total)
