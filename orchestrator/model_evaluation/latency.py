"""Measure how long one image takes that is drawn alone."""

import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from orchestrator.evaluation.report import Measurement
from orchestrator.model_evaluation.draw_images import condition_of, device_of
from orchestrator.model_evaluation.reference_set import ReferenceSet
from orchestrator.models.base import GenerativeModel

WARM_UP = 3
"""Images that are drawn first: they allocate memory and choose the kernels."""
FEWEST, MOST = 5, 50
"""Images that are timed."""
LONGEST_S = 10.0
"""After so many seconds, no more than FEWEST are timed."""


def measure_latency(model: GenerativeModel, reference: ReferenceSet) -> Measurement:
    """Measure ``latency_ms``: the median time in milliseconds of one image through ``sampler()``.

    On the CPU, with a thread for each core that this process may use. The input, class or caption
    is that of the first sample of the reference. Details: the fastest and the slowest image.
    """
    assert device_of(model).type == "cpu", "latency is that of the CPU"
    condition = condition_of(model, next(reference.batches(1)))
    sampler, times = model.sampler(), list[float]()
    with _threads(num_cores()):
        begun = time.perf_counter()
        for seed in range(WARM_UP + MOST):
            start = time.perf_counter()
            sampler(torch.tensor([seed]), condition)
            if seed >= WARM_UP:
                times.append(1000 * (time.perf_counter() - start))
            if len(times) >= FEWEST and time.perf_counter() - begun > LONGEST_S:
                break
    return Measurement(
        metric="latency_ms",
        value=statistics.median(times),
        n=len(times),
        details={"fastest": min(times), "slowest": max(times)},
    )


def describe_machine() -> str:
    """Return the name of this machine, and the number of cores that ``latency_ms`` is for."""
    return f"{platform.node()}, {num_cores()} cores"


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads: Ray gives a process one of each CPU that it asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
