"""Medians of short measurements. On a busy machine CPU seconds say more than the clock."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def cpu_s(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """CPU seconds of this process, all its threads, for one call."""
    return _median(time.process_time, call, rounds)


def wall_s(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the clock for one call."""
    return _median(time.perf_counter, call, rounds)


def _median(clock: Callable[[], float], call: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = clock()
        call()
        found.append(clock() - start)
    return statistics.median(found)
