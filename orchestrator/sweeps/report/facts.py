"""Ranking and comparison of trials, for tables and figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config.sweep import Value
from orchestrator.sweeps.records import Sweep, Trial, pareto_front, rank_configs

MIN_CONFIGURATIONS = 8
"""Fewest configurations for an importance estimate."""


def rank_trials(sweep: Sweep) -> list[Trial]:
    """Rank all trials, best first.

    More images rank first, since metrics after different numbers of images do not compare; among
    equals the first metric decides. Trials without a finite metric, diverged or failed come last.
    """
    sign = 1 if sweep.section.modes[0] == "min" else -1

    def key(trial: Trial) -> tuple[bool, int, float, int]:
        metric = trial.last_value()
        if not math.isfinite(metric) or trial.status in ("diverged", "failed"):
            return True, 0, 0.0, trial.number
        return False, -trial.images_seen, sign * metric, trial.number

    return sorted(sweep.trials, key=key)


def leading_trials(sweep: Sweep) -> list[int]:
    """Select the trials that figures highlight, by number.

    They are those of the best configuration or of the Pareto front; before any configuration has
    finished, the best trial so far.
    """
    best = pareto_front(sweep) if len(sweep.section.metrics) > 1 else rank_configs(sweep)[:1]
    if best:
        return [number for config in best for number in config.trials]
    return [t.number for t in rank_trials(sweep)[:1] if math.isfinite(t.last_value())]


@dataclass(frozen=True)
class Point:
    """Configuration with its metrics after some images."""

    values: Mapping[str, Value]
    metrics: tuple[float, ...]
    """Means over its trials."""


@dataclass(frozen=True)
class Comparison:
    """Configurations at the same number of images."""

    points: tuple[Point, ...]
    images_seen: int
    num_finished: int
    """Configurations whose trials all finished or were stopped."""

    def __str__(self) -> str:
        return (
            f"{len(self.points)} of the {self.num_finished} finished configurations, each at "
            f"{self.images_seen:,} images"
        )


def compare(sweep: Sweep) -> Comparison:
    """Compare the finished configurations at one number of images, as large as possible.

    It is the largest number that at least half of the configurations reached, and at least 8 of
    them; those that stopped earlier are left out.
    """
    grouped = sweep.by_configuration().values()
    finished = [trials for trials in grouped if all(t.is_ranked for t in trials)]
    best = Comparison((), 0, len(finished))
    need = max(min(MIN_CONFIGURATIONS, len(finished)), (len(finished) + 1) // 2)
    for images in sorted({t.images_seen for trials in finished for t in trials}, reverse=True):
        points = [point for trials in finished if (point := _point(trials, images))]
        if len(points) > len(best.points):
            best = Comparison(tuple(points), images, len(finished))
        if len(best.points) >= need:
            break
    return best


def _point(trials: list[Trial], images: int) -> Point | None:
    """Get a configuration's metrics at ``images``; None if there are none or not all are finite."""
    results = [[k.values for k in t.results if k.images_seen <= images] for t in trials]
    if any(t.images_seen < images for t in trials) or not all(results):
        return None
    columns = zip(*(seen[-1] for seen in results), strict=True)
    means = tuple(sum(column) / len(column) for column in columns)
    if not all(map(math.isfinite, means)):
        return None
    segments = [segment for segment in trials[0].segments if segment.start_images < images]
    return Point((segments or trials[0].segments)[-1].values, means)
