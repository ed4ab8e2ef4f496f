"""Medians of short measurements. CPU time is more reliable than wall time on a busy machine."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def cpu_s(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the CPU seconds of all threads of this process for one call."""
    return _median(time.process_time, call, rounds)


def wall_s(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the wall-clock seconds for one call."""
    return _median(time.perf_counter, call, rounds)


def _median(clock: Callable[[], float], call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)
