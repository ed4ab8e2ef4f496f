"""Counts images, time and waiting for data between two logs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class ThroughputMeter:
    """Images, time and waiting for data since the last log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start counting from zero."""
        self.images = 0
        self._waited_s = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside: it is not training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def lap(self) -> tuple[int, float, float]:
        """Return images of all workers, seconds, and seconds of waiting; restart the count."""
        elapsed_s = max(time.perf_counter() - self._start, 1e-9)
        lap = self.images, elapsed_s, self._waited_s
        self.restart()
        return lap
