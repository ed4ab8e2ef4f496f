"""What the schedulers read of the records."""

import math

from orchestrator.sweeps.records import Look, Sweep, Trial


def grace(sweep: Sweep) -> int:
    """Images before which no training is ended; for pbt, images between two rounds."""
    share = 5 if sweep.section.scheduler == "pbt" else 9
    return sweep.section.grace_images or max(1, sweep.total_images // share)


def first_at(trial: Trial, images: int) -> Look | None:
    """The first look with so many images or more."""
    return next((look for look in trial.looks if look.images_seen >= images), None)


def score(sweep: Sweep, look: Look) -> float:
    """The first metric with a sign so that higher is better; what is not finite is the worst."""
    value = look.values[0]
    if not math.isfinite(value):
        return -math.inf
    return value if sweep.section.modes[0] == "max" else -value


def shown(sweep: Sweep, score: float) -> str:
    """The metric that has this score, in few digits."""
    value = score if sweep.section.modes[0] == "max" else -score
    return f"{value + 0.0:.4g}"  # 0, never -0
