"""Axes: what a parameter or a metric can be, and where on a line each of its values lies."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from orchestrator.config.sweep import Distribution, Value
from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report.facts import compact, cut, is_wide

MOST_LISTED = 8
"""Up to so many numbers of a list are all written beside the axis."""


@dataclass(frozen=True)
class Scale:
    """The axis of one parameter or metric."""

    path: str
    """Its name, as in the job file."""
    label: str
    """A short name, alone of its kind."""
    low: float
    high: float
    log: bool = False
    categories: tuple[str, ...] = ()
    """The values that are no numbers, or none; the first lies at 0, the next at 1, ..."""
    whole: bool = False
    """Whether all its numbers are."""
    listed: tuple[float, ...] = ()
    """The numbers that it can be, if it was given so."""

    @property
    def is_number(self) -> bool:
        """Whether what is between two values means something."""
        return not self.categories

    def number(self, value: Value) -> float:
        """The value as a number: that of its category, if it has any; NaN if it is none."""
        if self.categories:
            name = compact(value)
            return float(self.categories.index(name)) if name in self.categories else math.nan
        number = float(value) if isinstance(value, int | float) else math.nan
        return math.nan if self.log and not number > 0 else number

    def even(self, value: Value) -> float:
        """The number, or its logarithm: equal steps of it are equal steps on the axis."""
        number = self.number(value)
        return math.log10(number) if self.log else number

    def place(self, number: float) -> float:
        """Where a number lies, between 0 at the lower end and 1 at the upper one."""
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def at(self, place: float) -> float:
        """The number that lies there: the opposite of ``place``."""
        if self.log:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Numbers to write beside the axis, and how."""
        if self.categories:
            return [(float(k), cut(name, 18)) for k, name in enumerate(self.categories)]
        if self.low == self.high:
            return [(self.low, compact(self.low))]
        if 0 < len(self.listed) <= MOST_LISTED:
            return [(number, compact(number)) for number in self.listed]
        finder: Locator
        if self.log:
            few = self.high < 100 * self.low
            finder = LogLocator(subs=(1, 2, 5) if few else (1,), numticks=most)
        else:
            finder = MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        found = [float(tick) for tick in finder.tick_values(self.low, self.high)]
        inside = [tick for tick in found if -1e-9 <= self.place(tick) <= 1 + 1e-9]
        if len(inside) < 2:
            inside = [self.low, self.high]
        return [(tick, f"{tick:.4g}") for tick in inside]


def parameter_scales(sweep: Sweep) -> list[Scale]:
    """The axes of all parameters, in the order of the space."""
    paths = list(sweep.section.space)
    used: dict[str, list[Value]] = {path: [] for path in paths}
    for trial in sweep.trials:
        for leg in trial.legs:
            for path in paths:
                if path in leg.values:
                    used[path].append(leg.values[path])
    labels = short_names(paths)
    return [
        _parameter_scale(path, labels[path], sweep.section.space[path], used[path])
        for path in paths
    ]


def metric_scale(name: str, values: Iterable[float]) -> Scale:
    """The axis of a metric that took these values."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    return Scale(name, cut(name), min(found), max(found), log=is_wide(found))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """For each dotted path its last part; the whole of it where two have the same last part."""
    lasts = {path: cut(path.rsplit(".", 1)[-1]) for path in paths}
    names = list(lasts.values())
    return {path: last if names.count(last) == 1 else cut(path, 40) for path, last in lasts.items()}


def _parameter_scale(path: str, label: str, drawn: Distribution, used: list[Value]) -> Scale:
    """The whole of what it can be, and what it was: pbt may have left what it is drawn from."""
    listed = drawn.kind in ("choice", "grid")
    values = [*(drawn.given if listed else drawn.given[:2]), *used]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        names = tuple(dict.fromkeys(compact(value) for value in values))
        return Scale(path, label, 0.0, max(1.0, len(names) - 1.0), categories=names)
    log = drawn.kind == "loguniform" or (listed and is_wide(numbers))
    whole = all(number.is_integer() for number in numbers) and drawn.kind != "uniform"
    options = tuple(sorted(set(numbers))) if listed else ()
    return Scale(path, label, min(numbers), max(numbers), log, (), whole, options)
