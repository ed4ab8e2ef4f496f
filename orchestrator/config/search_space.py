"""The space of a search: draws from it, and what keeps a value in its range."""

import itertools
import math
import random
from collections.abc import Mapping
from fractions import Fraction

from orchestrator.config.sweep import Distribution, Value


def draw(distribution: Distribution, rng: random.Random) -> Value:
    """A value drawn anew."""
    if distribution.uniform:
        low, high = distribution.uniform
        return clip(distribution, rng.uniform(low, high))
    if distribution.loguniform:
        low, high = distribution.loguniform
        return clip(distribution, math.exp(rng.uniform(math.log(low), math.log(high))))
    if distribution.quniform:
        return on_step(distribution.quniform, rng.randint(0, last_step(distribution.quniform)))
    if distribution.randint:
        lowest, highest = distribution.randint
        return rng.randint(lowest, highest)
    return rng.choice(distribution.given)


def clip(distribution: Distribution, value: Value) -> Value:
    """The nearest value in the range; choices have none, and stay as they are."""
    if isinstance(value, str | None) or distribution.kind in ("choice", "grid"):
        return value
    if distribution.randint:
        lowest, highest = distribution.randint
        return round(min(max(value, lowest), highest))
    if distribution.quniform:
        low, high, step = distribution.quniform
        nearest = round((min(max(value, low), high) - low) / step)
        return on_step(distribution.quniform, min(nearest, last_step(distribution.quniform)))
    low, high = distribution.uniform or distribution.loguniform or (value, value)
    return min(max(float(value), low), high)


def grid(space: Mapping[str, Distribution]) -> list[dict[str, Value]]:
    """Every combination of the grids, the last one changing fastest; other fields are left out.

    Without a grid there is one combination, of nothing.
    """
    names = [name for name, distribution in space.items() if distribution.grid is not None]
    columns = [space[name].given for name in names]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*columns)]


def last_step(quniform: list[float]) -> int:
    """How many steps there are above the lowest value."""
    low, high, step = map(_as_written, quniform)
    return math.floor((high - low) / step)


def on_step(quniform: list[float], number: int) -> Value:
    """The value so many steps above the lowest.

    A whole number where all steps are whole: fields such as model.channels take no other.
    """
    low, _, step = map(_as_written, quniform)
    value = low + number * step
    return int(value) if low.denominator == step.denominator == 1 else float(value)


def _as_written(number: float) -> Fraction:
    """The decimal fraction that was meant: two steps of 0.1 above 0.1 are 0.3."""
    return Fraction(repr(number))
