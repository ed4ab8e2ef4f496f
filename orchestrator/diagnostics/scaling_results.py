"""What short runs with several numbers of workers gave."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.training.profiler import StepTimes


@dataclass(frozen=True)
class Measured:
    """The steps of one run, less those of the warm-up."""

    workers: int
    batch_size: int
    """Images of a step over all workers."""
    steps: tuple[tuple[StepTimes, ...], ...]
    """By rank; each has the same number."""

    @property
    def images_per_s(self) -> float:
        """Images of all steps over the seconds that they took: a rare long wait counts too."""
        return self.batch_size / self.step_s

    @property
    def step_s(self) -> float:
        """Mean seconds of a step; that of its parts, below, add up to it."""
        return self._mean([step.step_s for rank in self.steps for step in rank])

    @property
    def computation_s(self) -> float:
        """Mean seconds of computation in a step."""
        return self._mean([step.computation_s for rank in self.steps for step in rank])

    @property
    def communication_s(self) -> float:
        """Mean seconds of a step in which a worker waits for averaged gradients."""
        return self._mean([step.communication_s for rank in self.steps for step in rank])

    @property
    def overlapped_s(self) -> float:
        """Mean seconds of averaging that the backward pass hides: they are computation."""
        return self._mean([step.overlapped_s for rank in self.steps for step in rank])

    @property
    def data_s(self) -> float:
        """Mean seconds of a step in which a worker waits for its images."""
        return self._mean([step.data_s for rank in self.steps for step in rank])

    @property
    def median_step_s(self) -> float:
        """Of the steps, each the mean over ranks: what one takes when nothing disturbs it."""
        by_step = zip(*self.steps, strict=True)
        return statistics.median(self._mean([s.step_s for s in step]) for step in by_step)

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)


def efficiency(measured: Measured, base: Measured) -> float:
    """Images/s of each worker, relative to those of each worker of ``base``: 1 is ideal."""
    each = measured.images_per_s / measured.workers
    return each / (base.images_per_s / base.workers)


def rows(results: Sequence[Measured]) -> list[tuple[str, ...]]:
    """A table for a person, with a head; efficiency is against the first."""
    head = (
        "workers", "images each", "images/s", "efficiency", "ms a step", "computation",
        "communication", "data", "median step",
    )  # fmt: skip
    return [head, *(_row(measured, results[0]) for measured in results)]


def _row(measured: Measured, base: Measured) -> tuple[str, ...]:
    seconds = (
        measured.step_s,
        measured.computation_s,
        measured.communication_s,
        measured.data_s,
        measured.median_step_s,
    )
    return (
        f"{measured.workers}",
        f"{measured.batch_size / measured.workers:g}",
        f"{measured.images_per_s:.1f}",
        f"{100 * efficiency(measured, base):.0f} %",
        *(f"{1000 * value:.1f}" for value in seconds),
    )


def to_json(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """Everything, with the times of each step of each rank."""
    return [
        {
            "workers": measured.workers,
            "batch_size": measured.batch_size,
            "images_per_s": measured.images_per_s,
            "efficiency": efficiency(measured, results[0]),
            "step_s": measured.step_s,
            "computation_s": measured.computation_s,
            "communication_s": measured.communication_s,
            "overlapped_s": measured.overlapped_s,
            "data_s": measured.data_s,
            "median_step_s": measured.median_step_s,
            "ranks": [[step._asdict() for step in rank] for rank in measured.steps],
        }
        for measured in results
    ]
