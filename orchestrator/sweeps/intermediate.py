"""Queries on intermediate results that the schedulers share."""

import math

from orchestrator.sweeps.records import IntermediateResult, Sweep, Trial


def grace_images(sweep: Sweep) -> int:
    """Images before which no trial is stopped; for pbt, images between two perturbations."""
    divisor = 5 if sweep.section.scheduler == "pbt" else 9
    return sweep.section.grace_images or max(1, sweep.total_images // divisor)


def first_result_at(trial: Trial, images: int) -> IntermediateResult | None:
    """Find the first result at ``images`` or later; None if the trial has not got there."""
    return next((result for result in trial.results if result.images_seen >= images), None)


def score(sweep: Sweep, result: IntermediateResult) -> float:
    """Convert the first metric so that higher is better; a non-finite value becomes -inf."""
    value = result.values[0]
    if not math.isfinite(value):
        return -math.inf
    return value if sweep.section.modes[0] == "max" else -value


def format_score(sweep: Sweep, score: float) -> str:
    """Format a score as the metric that it came from, with four significant digits."""
    value = score if sweep.section.modes[0] == "max" else -score
    return f"{value + 0.0:.4g}"  # + 0.0 turns -0 into 0
