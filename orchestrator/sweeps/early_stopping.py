"""Schedulers: which running trial stops early and which one pauses at a milestone.

The decisions are functions of the records alone, so they are the same after a restart. Only the
first metric counts, and a non-finite value ranks last. Paused trials are decided in
``promotion.py``.
"""

import statistics
from dataclasses import dataclass
from typing import Literal

from orchestrator.sweeps.intermediate import first_result_at, format_score, grace_images, score
from orchestrator.sweeps.promotion import last_milestone
from orchestrator.sweeps.records import Sweep, Trial

MIN_OTHER_TRIALS = 3
"""Fewest other trials for a median."""


@dataclass(frozen=True)
class TrialDecision:
    """What a running trial must do next."""

    action: Literal["continue", "stop", "pause"]
    """pause: save a checkpoint and wait for ``promotion.decide_promotions``."""
    reason: str = ""


CONTINUE = TrialDecision("continue")


def decide_trial(sweep: Sweep, trial: Trial) -> TrialDecision:
    """Decide about a running trial after its newest intermediate result.

    A trial that has seen all its images continues: it finishes without being told.
    """
    if not trial.results or trial.images_seen >= sweep.total_images:
        return CONTINUE
    match sweep.section.scheduler:
        case "fifo":
            return CONTINUE
        case "median":
            return _apply_median_rule(sweep, trial)
    images = last_milestone(sweep, trial)
    if images and first_result_at(trial, images) is trial.results[-1]:
        return TrialDecision("pause", f"waits for other trials at {images:,} images")
    return CONTINUE


def _apply_median_rule(sweep: Sweep, trial: Trial) -> TrialDecision:
    """Apply the median stopping rule (Golovin et al. 2017, section 3.2).

    A trial stops if its best value is worse than the median of the other trials' running averages
    at the same number of images.
    """
    seen = trial.images_seen
    means = []
    for other in sweep.trials:
        scores = [score(sweep, result) for result in other.results if result.images_seen <= seen]
        if other.number != trial.number and scores and first_result_at(other, seen):
            # statistics.mean is exact; a rounded mean could rank a trial below its equals.
            means.append(statistics.mean(scores))
    if seen < grace_images(sweep) or len(means) < MIN_OTHER_TRIALS:
        return CONTINUE
    best, median = max(score(sweep, result) for result in trial.results), statistics.median(means)
    if not best < median:
        return CONTINUE
    return TrialDecision(
        "stop",
        f"best value {format_score(sweep, best)} in {seen:,} images; the median of the means of "
        f"{len(means)} other trials is {format_score(sweep, median)}",
    )
