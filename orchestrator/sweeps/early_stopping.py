"""Which training is ended early, and which one waits for others: functions of the records alone.

So they say the same after a restart. Only the first metric counts, and a value that is not finite
counts as the worst. What becomes of those that wait is in ``rounds``.
"""

import statistics
from dataclasses import dataclass
from typing import Literal

from orchestrator.sweeps.intermediate import first_at, grace, score, shown
from orchestrator.sweeps.promotion import Settlement, boundary_before, settle
from orchestrator.sweeps.records import Sweep, Trial

__all__ = ["Settlement", "Verdict", "judge", "settle"]

FEWEST_OTHERS = 3
"""Trainings that a median is taken of, at least."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a training that runs."""

    action: Literal["go on", "stop", "pause"]
    """pause: save, and wait for what ``settle`` says."""
    why: str = ""


GO_ON = Verdict("go on")


def judge(sweep: Sweep, trial: Trial) -> Verdict:
    """What becomes of a training that runs, after its newest look.

    One that has seen all its images goes on: it ends by itself.
    """
    if not trial.looks or trial.images_seen >= sweep.total_images:
        return GO_ON
    match sweep.section.scheduler:
        case "median":
            return _median(sweep, trial)
        case "asha" | "hyperband" | "pbt":
            return _pause(sweep, trial)
    return GO_ON


def _median(sweep: Sweep, trial: Trial) -> Verdict:
    """The median stopping rule (Golovin et al. 2017).

    The best value of a training must be as good as the median of what others had on average until
    they had seen as many images.
    """
    seen = trial.images_seen
    means = []
    for other in sweep.trials:
        scores = [score(sweep, look) for look in other.looks if look.images_seen <= seen]
        if other.number != trial.number and scores and first_at(other, seen):
            # Exact: with a rounded one, a training could be worse than others that are the same.
            means.append(statistics.mean(scores))
    if seen < grace(sweep) or len(means) < FEWEST_OTHERS:
        return GO_ON
    best, median = max(score(sweep, look) for look in trial.looks), statistics.median(means)
    if not best < median:
        return GO_ON
    return Verdict(
        "stop",
        f"{shown(sweep, best)} at best in {seen:,} images; the median of the means of "
        f"{len(means)} others is {shown(sweep, median)}",
    )


def _pause(sweep: Sweep, trial: Trial) -> Verdict:
    """To wait at each rung or round, at the first look that reaches it."""
    images = boundary_before(sweep, trial)
    if images and first_at(trial, images) is trial.looks[-1]:
        return Verdict("pause", f"waits for others at {images:,} images")
    return GO_ON
