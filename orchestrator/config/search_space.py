"""Count the configurations of a search space, draw values from it, and clip values to it."""

import math
import random
from collections.abc import Mapping
from fractions import Fraction

from orchestrator.config.sweep import Distribution, SweepSection, Value


def draw(distribution: Distribution, rng: random.Random) -> Value:
    """Draw a value."""
    if distribution.uniform:
        return clip(distribution, rng.uniform(*distribution.uniform))
    if distribution.loguniform:
        low, high = distribution.loguniform
        return clip(distribution, math.exp(rng.uniform(math.log(low), math.log(high))))
    if distribution.quniform:
        number = rng.randint(0, num_steps(distribution.quniform))
        return value_at_step(distribution.quniform, number)
    if distribution.randint:
        return rng.randint(*distribution.randint)
    return rng.choice(distribution.args)


def clip(distribution: Distribution, value: Value) -> Value:
    """Return the nearest value in the range; choices have no range, and are returned unchanged."""
    if isinstance(value, str | None) or distribution.kind in ("choice", "grid"):
        return value
    if distribution.randint:
        lowest, highest = distribution.randint
        return round(min(max(value, lowest), highest))
    if distribution.quniform:
        low, high, step = distribution.quniform
        nearest = round((min(max(value, low), high) - low) / step)
        return value_at_step(distribution.quniform, min(nearest, num_steps(distribution.quniform)))
    low, high = distribution.uniform or distribution.loguniform or (value, value)
    return min(max(float(value), low), high)


def grid_size(space: Mapping[str, Distribution]) -> int:
    """Count the combinations of the grids; 1 without grids."""
    return math.prod(len(given.grid) for given in space.values() if given.grid is not None)


def grid_point(space: Mapping[str, Distribution], number: int) -> dict[str, Value]:
    """Return combination ``number`` of the grids, the last one changing fastest."""
    point: dict[str, Value] = {}
    for name, given in reversed([*space.items()]):
        if given.grid is not None:
            number, index = divmod(number, len(given.grid))
            point[name] = given.grid[index]
    return dict(reversed(point.items()))


def num_configurations(section: SweepSection) -> int:
    """Count the configurations of a sweep."""
    if section.searcher != "grid":
        assert section.trials is not None, "checked in sweep_rules.py"
        return section.trials
    size = grid_size(section.space)
    return min(size, section.trials or size)


def num_steps(quniform: list[float]) -> int:
    """Return the number of steps above the lowest value."""
    low, high, step = map(_as_written, quniform)
    return math.floor((high - low) / step)


def value_at_step(quniform: list[float], number: int) -> Value:
    """Return the value ``number`` steps above the lowest; an int if all are, for integer fields."""
    low, _, step = map(_as_written, quniform)
    value = low + number * step
    return int(value) if low.denominator == step.denominator == 1 else float(value)


def _as_written(number: float) -> Fraction:
    """Return the exact decimal: two steps of 0.1 above 0.1 are 0.3."""
    return Fraction(repr(number))
