"""Where the time of training steps goes: waiting for data, averaging gradients, computing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from orchestrator.training.interfaces import DATA, STEP


class StepTimes(NamedTuple):
    """Seconds of one step on one worker."""

    step_s: float
    """From the wish for a batch to the wish for the next one."""
    data_s: float
    """Waiting for the batch, with its way to the device."""
    communication_s: float
    """Waiting for averaged gradients with nothing left to compute: the network, and slower workers
    too. Sums of single numbers, such as means that a model asks for, are not in it."""
    overlapped_s: float
    """Averaging of gradients behind which the backward pass went on; part of the computation."""

    @property
    def computation_s(self) -> float:
        """The rest."""
        return self.step_s - self.data_s - self.communication_s


_ALL_RANKS: Any = None


@dataclass
class _Sent:
    """Gradients on their way: one bucket of DistributedDataParallel's."""

    sent: Any
    is_last: bool
    """Whether the backward pass was over by then."""
    back: Any = None


class Stopwatch:
    """Times the steps of one worker; the loop tells it what it does and what averages gradients.

    On a GPU it waits for the device before and after each step, so that what is timed is what was
    computed meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[StepTimes] = []
        self._on_gpu = device.type == "cuda"
        self._began: float | None = None
        self._got_batch = 0.0
        self._sent: list[_Sent] = []

    def doing(self, what: str) -> None:
        """The worker does something else from now on."""
        if self._on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if what == STEP:
            self._got_batch = now
            return
        if self._began is not None:
            exposed_s, overlapped_s = _averaging(self._offsets())
            data_s = self._got_batch - self._began
            self.steps.append(StepTimes(now - self._began, data_s, exposed_s, overlapped_s))
        self._began = now if what == DATA else None
        self._sent = []

    def averages(self, wrapped: DistributedDataParallel) -> None:
        """Time how ``wrapped`` averages gradients, which it does as before."""
        wrapped.register_comm_hook(self, _timed_average)

    def mark(self) -> Any:
        """This moment, on the GPU that of the work that was given to it so far."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _offsets(self) -> list[tuple[float, float, bool]]:
        """Of each bucket when it was sent and when it was back, in seconds after the first one."""

        def offset(mark: Any) -> float:
            first = self._sent[0].sent
            return float(first.elapsed_time(mark) / 1000 if self._on_gpu else mark - first)

        return [(offset(s.sent), offset(s.back), s.is_last) for s in self._sent]


def _timed_average(
    watch: Stopwatch,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch asks for this very name
) -> torch.futures.Future[Tensor]:
    sent = _Sent(watch.mark(), bucket.is_last())
    watch._sent.append(sent)

    def back(averaged: torch.futures.Future[Tensor]) -> Tensor:
        sent.back = watch.mark()
        return averaged.value()

    averaged: torch.futures.Future[Tensor] = allreduce_hook(_ALL_RANKS, bucket)
    return averaged.then(back)


def _averaging(buckets: Sequence[tuple[float, float, bool]]) -> tuple[float, float]:
    """Seconds of averaging after the backward passes, and behind them.

    Args:
        buckets: of one step: when each was sent and back, in the order of sending, and whether it
            was the last one of its backward pass.
    """
    exposed_s, overlapped_s = 0.0, 0.0
    of_this_pass: list[tuple[float, float]] = []
    for sent, back, is_last in buckets:
        of_this_pass.append((sent, back))
        if not is_last:
            continue
        exposed_s += max(max(end for _, end in of_this_pass) - sent, 0.0)
        reached = of_this_pass[0][0]
        for start, end in of_this_pass:  # what several had in common counts once
            until = min(end, sent)
            overlapped_s += max(until - max(start, reached), 0.0)
            reached = max(reached, until)
        of_this_pass = []
    return exposed_s, overlapped_s


def of_all_ranks(steps: Sequence[StepTimes], world_size: int) -> tuple[tuple[StepTimes, ...], ...]:
    """The steps of every rank, by rank; every rank calls it."""
    if world_size == 1:
        return (tuple(steps),)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, list(steps))
    return tuple(tuple(of_rank) for of_rank in gathered)
