"""Scales of parameters and metrics: their ranges, and the position of a value on an axis."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from orchestrator.config.sweep import Value
from orchestrator.report.formats import format_value_short, shorten, spans_magnitudes

MAX_LISTED = 8
"""Listed numbers up to which each one gets a tick."""


@dataclass(frozen=True)
class Scale:
    """Scale of one parameter or metric."""

    path: str
    """Full name, as in the job file."""
    label: str
    """Short name, unique among the scales."""
    low: float
    high: float
    log: bool = False
    categories: tuple[str, ...] = ()
    """Categorical values, at 0, 1, ...; empty for a number."""
    integer: bool = False
    listed: tuple[float, ...] = ()
    """Allowed numbers of a choice or grid."""

    def to_number(self, value: Value) -> float:
        """Convert a value to a number, a category to its index; NaN if that is not possible."""
        if self.categories:
            name = format_value_short(value)
            return float(self.categories.index(name)) if name in self.categories else math.nan
        number = float(value) if isinstance(value, int | float) else math.nan
        return math.nan if self.log and not number > 0 else number

    def to_linear(self, value: Value) -> float:
        """Convert a value to a number that is linear on the axis: its logarithm on a log scale."""
        number = self.to_number(value)
        return math.log10(number) if self.log else number

    def position(self, number: float) -> float:
        """Position of a number on the axis, from 0 (lower end) to 1 (upper end)."""
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def number_at(self, position: float) -> float:
        """Number at a position: the inverse of ``position``."""
        if self.log:
            return float(self.low * (self.high / self.low) ** position)
        return self.low + position * (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels of the axis ticks, about six of them."""
        if self.categories:
            return [(float(k), shorten(name, 18)) for k, name in enumerate(self.categories)]
        if self.low == self.high:
            return [(self.low, format_value_short(self.low))]
        if 0 < len(self.listed) <= MAX_LISTED:
            return [(number, format_value_short(number)) for number in self.listed]
        finder: Locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.integer)
        if self.log:
            few = self.high < 100 * self.low
            finder = LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6)
        found = [float(tick) for tick in finder.tick_values(self.low, self.high)]
        inside = [tick for tick in found if -1e-9 <= self.position(tick) <= 1 + 1e-9]
        if len(inside) < 2:
            inside = [self.low, self.high]
        return [(tick, f"{tick:.4g}") for tick in inside]


def metric_scale(name: str, values: Iterable[float]) -> Scale:
    """Make the scale of a metric from the values it took."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    return Scale(name, shorten(name), min(found), max(found), log=spans_magnitudes(found))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Map each dotted path to its last part, or to the whole path where that is ambiguous."""
    lasts = {path: shorten(path.rsplit(".", 1)[-1]) for path in paths}
    names = list(lasts.values())
    return {
        path: last if names.count(last) == 1 else shorten(path, 40) for path, last in lasts.items()
    }
