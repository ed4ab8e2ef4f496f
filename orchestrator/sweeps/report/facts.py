"""What tables and figures need of a sweep: the order of its trials, and metrics to compare."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.config.sweep import Value
from orchestrator.sweeps.records import Sweep, Trial, pareto_front, standings

ENOUGH = 8
"""Configurations, for an estimate of what matters."""
NONE = "\N{EN DASH}"
"""Stands for a number that there is not."""
WIDE = 30.0
"""From this ratio of the largest to the smallest on, an axis is logarithmic."""


def compact(value: Value) -> str:
    """A value as short as it can be said: four digits of a number; a word as in YAML."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if abs(value) < 1_000_000:
            return str(value)
        case int() | float():
            return NONE if math.isnan(value) else f"{value:.4g}"
        case _:
            return str(value)


def cut(text: str, length: int = 28) -> str:
    """One line of ``text`` with at most ``length`` letters; what is left out is in its middle."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    end = (length - 1) // 3
    return f"{line[: length - 1 - end]}…{line[-end:]}"


def is_wide(values: Iterable[float]) -> bool:
    """Whether numbers above 0 span so much that only a logarithmic axis shows them all."""
    found = [value for value in values if math.isfinite(value)]
    return bool(found) and min(found) > 0 and max(found) > WIDE * min(found)


def ranked(sweep: Sweep) -> list[Trial]:
    """All trials, the best first.

    One that has seen more images comes first, as fewer images make no fair comparison; among
    equals the first metric decides. Those without a number, diverged or failed are the last.
    """
    sign = 1 if sweep.section.modes[0] == "min" else -1

    def key(trial: Trial) -> tuple[bool, int, float, int]:
        metric = trial.last()
        if not math.isfinite(metric) or trial.status in ("diverged", "failed"):
            return True, 0, 0.0, trial.number
        return False, -trial.images_seen, sign * metric, trial.number

    return sorted(sweep.trials, key=key)


def leaders(sweep: Sweep) -> list[int]:
    """Numbers of the trials that figures point at.

    They are those of the best configuration, or of the Pareto front; while none is done, the best
    of what there is.
    """
    best = pareto_front(sweep) if len(sweep.section.metrics) > 1 else standings(sweep)[:1]
    if best:
        return [number for standing in best for number in standing.trials]
    return [t.number for t in ranked(sweep)[:1] if math.isfinite(t.last())]


@dataclass(frozen=True)
class Point:
    """A configuration and how good it was at a certain time."""

    values: Mapping[str, Value]
    metrics: tuple[float, ...]
    """Means over its trainings."""


@dataclass(frozen=True)
class Comparison:
    """Configurations at one and the same number of images."""

    points: tuple[Point, ...]
    images_seen: int
    done: int
    """Configurations that finished or were stopped, with a number."""

    def __str__(self) -> str:
        return (
            f"{len(self.points)} of the {self.done} configurations that are done, each at "
            f"{self.images_seen:,} images"
        )


def compare(sweep: Sweep) -> Comparison:
    """The configurations that are done, at as many images as possible.

    A metric tells something only beside others after as many images. So the time is the last one
    that at least half of the configurations reached, and at least 8 of them; those that ended
    earlier are left out.
    """
    grouped: dict[int, list[Trial]] = {}
    for trial in sweep.trials:
        grouped.setdefault(trial.configuration, []).append(trial)
    done = [
        trials
        for trials in grouped.values()
        if all(t.status in ("finished", "stopped") and t.looks for t in trials)
    ]
    best = Comparison((), 0, len(done))
    need = max(min(ENOUGH, len(done)), (len(done) + 1) // 2)
    for images in sorted({t.images_seen for trials in done for t in trials}, reverse=True):
        points = [point for trials in done if (point := _point(trials, images))]
        if len(points) > len(best.points):
            best = Comparison(tuple(points), images, len(done))
        if len(best.points) >= need:
            break
    return best


def _point(trials: list[Trial], images: int) -> Point | None:
    """Where a configuration was at ``images``; None if it was not, or had no number."""
    if any(t.images_seen < images for t in trials):
        return None
    looks = [[k.values for k in t.looks if k.images_seen <= images] for t in trials]
    if not all(looks):
        return None
    means = tuple(
        sum(column) / len(column) for column in zip(*(seen[-1] for seen in looks), strict=True)
    )
    if not all(math.isfinite(mean) for mean in means):
        return None
    legs = [leg for leg in trials[0].legs if leg.from_images < images]
    return Point((legs or trials[0].legs)[-1].values, means)
