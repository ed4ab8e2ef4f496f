"""Results of short runs with different numbers of workers."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.training.profiler import StepTimes


@dataclass(frozen=True)
class ScalingResult:
    """Timed steps of one run, without the warm-up."""

    workers: int
    batch_size: int
    """Images per step over all workers."""
    steps: tuple[tuple[StepTimes, ...], ...]
    """Steps by rank; each rank has the same number."""

    @property
    def images_per_s(self) -> float:
        """Images of all steps over their total time, which includes rare long waits."""
        return self.batch_size / self.step_s

    @property
    def step_s(self) -> float:
        """Mean seconds per step: the sum of computation, communication and data."""
        return self._mean([step.step_s for rank in self.steps for step in rank])

    @property
    def computation_s(self) -> float:
        """Mean seconds of computation per step."""
        return self._mean([step.computation_s for rank in self.steps for step in rank])

    @property
    def communication_s(self) -> float:
        """Mean seconds per step that a worker waits for averaged gradients."""
        return self._mean([step.communication_s for rank in self.steps for step in rank])

    @property
    def overlapped_s(self) -> float:
        """Mean seconds of gradient averaging that overlap with, and count as, computation."""
        return self._mean([step.overlapped_s for rank in self.steps for step in rank])

    @property
    def data_s(self) -> float:
        """Mean seconds per step that a worker waits for its images."""
        return self._mean([step.data_s for rank in self.steps for step in rank])

    @property
    def median_step_s(self) -> float:
        """Median seconds per step, of the means over ranks: the time of an undisturbed step."""
        by_step = zip(*self.steps, strict=True)
        return statistics.median(self._mean([s.step_s for s in step]) for step in by_step)

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)


def efficiency(result: ScalingResult, base: ScalingResult) -> float:
    """Images/s per worker, relative to ``base``; 1 is ideal."""
    per_worker = result.images_per_s / result.workers
    return per_worker / (base.images_per_s / base.workers)


def rows(results: Sequence[ScalingResult]) -> list[tuple[str, ...]]:
    """Format a table with a header; efficiency is relative to the first result."""
    header = (
        "workers", "images/worker", "images/s", "efficiency", "step ms", "compute",
        "communication", "data wait", "median step",
    )  # fmt: skip
    return [header, *(_row(result, results[0]) for result in results)]


def _row(result: ScalingResult, base: ScalingResult) -> tuple[str, ...]:
    seconds = (
        result.step_s,
        result.computation_s,
        result.communication_s,
        result.data_s,
        result.median_step_s,
    )
    return (
        f"{result.workers}",
        f"{result.batch_size / result.workers:g}",
        f"{result.images_per_s:.1f}",
        f"{100 * efficiency(result, base):.0f} %",
        *(f"{1000 * value:.1f}" for value in seconds),
    )


def to_json(results: Sequence[ScalingResult]) -> list[dict[str, Any]]:
    """Convert to plain data, with the times of each step of each rank."""
    return [
        {
            "workers": result.workers,
            "batch_size": result.batch_size,
            "images_per_s": result.images_per_s,
            "efficiency": efficiency(result, results[0]),
            "step_s": result.step_s,
            "computation_s": result.computation_s,
            "communication_s": result.communication_s,
            "overlapped_s": result.overlapped_s,
            "data_s": result.data_s,
            "median_step_s": result.median_step_s,
            "ranks": [[step._asdict() for step in rank] for rank in result.steps],
        }
        for result in results
    ]
