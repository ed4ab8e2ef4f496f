"""Measures how long a step waits for data, averages gradients and computes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from orchestrator.training.collectives import gather
from orchestrator.training.interfaces import DATA, STEP


class StepTimes(NamedTuple):
    """Seconds of one step on one worker."""

    step_s: float
    """From one request for a batch to the next."""
    data_s: float
    """Waiting for the batch, including its copy to the device."""
    communication_s: float
    """Waiting for averaged gradients with nothing left to compute, because of the network or of
    slower workers. Sums of single numbers, such as means for ``after_step``, are not included."""
    overlapped_s: float
    """Averaging of gradients during the backward pass; part of the computation."""

    @property
    def computation_s(self) -> float:
        """The rest of the step."""
        return self.step_s - self.data_s - self.communication_s


@dataclass
class _Bucket:
    """One bucket of gradients of DistributedDataParallel's; times are marks of the profiler."""

    sent: Any
    is_last: bool
    """Whether it was the last bucket of its backward pass."""
    returned: Any = None


class StepProfiler:
    """Times the steps of one worker, as its ``on_activity`` and ``on_ddp`` callbacks.

    On a GPU it waits for the device before and after each step, so that each time covers the
    computation that belongs to it.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[StepTimes] = []
        self._on_gpu = device.type == "cuda"
        self._start: float | None = None
        self._got_batch = 0.0
        self._buckets: list[_Bucket] = []

    def on_activity(self, activity: str) -> None:
        """Note that the worker starts another activity."""
        if self._on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if activity == STEP:
            self._got_batch = now
            return
        if self._start is not None:
            exposed_s, overlapped_s = _averaging_times(self._offsets())
            data_s = self._got_batch - self._start
            self.steps.append(StepTimes(now - self._start, data_s, exposed_s, overlapped_s))
        self._start = now if activity == DATA else None
        self._buckets = []

    def on_ddp(self, wrapped: DistributedDataParallel) -> None:
        """Time how ``wrapped`` averages gradients, without changing it."""
        wrapped.register_comm_hook(self, _timed_average)

    def mark(self) -> Any:
        """Return a mark of this moment; on a GPU, of the end of the work queued so far."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _offsets(self) -> list[tuple[float, float, bool]]:
        """Return when each bucket was sent and returned, in seconds after the first was sent."""

        def offset(mark: Any) -> float:
            first = self._buckets[0].sent
            return float(first.elapsed_time(mark) / 1000 if self._on_gpu else mark - first)

        return [(offset(b.sent), offset(b.returned), b.is_last) for b in self._buckets]


def _timed_average(
    profiler: StepProfiler,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch requires this annotation
) -> torch.futures.Future[Tensor]:
    timed = _Bucket(profiler.mark(), bucket.is_last())
    profiler._buckets.append(timed)

    def on_return(averaged: torch.futures.Future[Tensor]) -> Tensor:
        timed.returned = profiler.mark()
        return averaged.value()

    all_ranks: Any = None
    averaged: torch.futures.Future[Tensor] = allreduce_hook(all_ranks, bucket)
    return averaged.then(on_return)


def _averaging_times(buckets: Sequence[tuple[float, float, bool]]) -> tuple[float, float]:
    """Return the seconds of averaging after the backward passes, and during them.

    Args:
        buckets: of one step: when each was sent and returned, in the order of sending, and whether
            it was the last one of its backward pass.
    """
    exposed_s, overlapped_s = 0.0, 0.0
    in_pass: list[tuple[float, float]] = []
    for sent, returned, is_last in buckets:
        in_pass.append((sent, returned))
        if not is_last:
            continue
        exposed_s += max(max(end for _, end in in_pass) - sent, 0.0)
        reached = in_pass[0][0]
        for start, end in in_pass:  # where several overlap, the time counts once
            until = min(end, sent)
            overlapped_s += max(until - max(start, reached), 0.0)
            reached = max(reached, until)
        in_pass = []
    return exposed_s, overlapped_s


def gather_steps(steps: Sequence[StepTimes], world_size: int) -> tuple[tuple[StepTimes, ...], ...]:
    """Gather the steps of every rank, by rank; every rank calls it."""
    by_rank = gather([list(step) for step in steps], world_size)
    return tuple(tuple(StepTimes(*times) for times in of_rank) for of_rank in by_rank)
