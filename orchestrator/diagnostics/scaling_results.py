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
    def mean(self) -> StepTimes:
        """Means over all steps and ranks."""
        steps = [step for rank in self.steps for step in rank]
        return StepTimes(*map(statistics.fmean, zip(*steps, strict=True)))

    @property
    def images_per_s(self) -> float:
        """Images of all steps over their total time, which includes rare long waits."""
        return self.batch_size / self.mean.step_s

    @property
    def median_step_s(self) -> float:
        """Median seconds per step, of the means over ranks: the time of an undisturbed step."""
        by_step = zip(*self.steps, strict=True)
        return statistics.median(statistics.fmean(s.step_s for s in step) for step in by_step)


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
    table: list[tuple[str, ...]] = [header]
    for result in results:
        mean, images = result.mean, f"{result.batch_size / result.workers:g}"
        speed, percent = f"{result.images_per_s:.1f}", 100 * efficiency(result, results[0])
        parts = (mean.step_s, mean.computation_s, mean.communication_s, mean.data_s)
        times = [f"{1000 * seconds:.1f}" for seconds in (*parts, result.median_step_s)]
        table.append((f"{result.workers}", images, speed, f"{percent:.0f} %", *times))
    return table


def to_json(results: Sequence[ScalingResult]) -> list[dict[str, Any]]:
    """Convert to plain data, with the times of each step of each rank."""
    return [
        {
            "workers": result.workers,
            "batch_size": result.batch_size,
            "images_per_s": result.images_per_s,
            "efficiency": efficiency(result, results[0]),
            **result.mean._asdict(),
            "computation_s": result.mean.computation_s,
            "median_step_s": result.median_step_s,
            "ranks": [[step._asdict() for step in rank] for rank in result.steps],
        }
        for result in results
    ]
