"""Images, time and waiting for data between two logs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Images, time and waiting for data since the last log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start counting now."""
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
        """Leave out the time inside: it is no training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def lap(self) -> tuple[int, float, float]:
        """Images over all workers, seconds, and seconds of waiting for data; starts anew."""
        elapsed_s = max(time.perf_counter() - self._start, 1e-9)
        lap = self.images, elapsed_s, self._waited_s
        self.restart()
        return lap
