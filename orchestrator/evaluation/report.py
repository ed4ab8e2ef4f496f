"""What an evaluation measured: each number with its interval, number of images and floor."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from textwrap import wrap

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import DataError
from orchestrator.evaluation.intervals import Floor, Interval

WIDTH = 80
"""Columns of the table."""


@dataclass(frozen=True)
class Measurement:
    """One metric of one set of images."""

    metric: str
    """Name with extractor and number of images, as in ``frechet.lite0.n5000``."""
    value: float
    n: int
    """Images that were measured."""
    interval: Interval | None = None
    """Where the value would lie, with 95 %, for other images of the same sources."""
    floor: Floor | None = None
    """What real images score."""
    extractor: str | None = None
    """What the features are from; None for metrics of pixels."""
    reference_n: int | None = None
    """Images of the reference; None for metrics without one."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that belong to the value."""

    def __post_init__(self) -> None:
        ends = [] if self.interval is None else [self.interval.low, self.interval.high]
        for number in (self.value, *ends, *self.details.values()):
            if not math.isfinite(number):
                raise DataError(f"{self.metric} is {number}; check the images and the extractor")


@dataclass(frozen=True)
class EvaluationReport:
    """All metrics of one evaluation."""

    measurements: tuple[Measurement, ...]

    def __getitem__(self, metric: str) -> Measurement:
        """Return the measurement with that name; KeyError if there is none."""
        return {each.metric: each for each in self.measurements}[metric]

    def values(self) -> dict[str, float]:
        """Return the value of each metric, for tracking."""
        return {each.metric: each.value for each in self.measurements}

    def to_json(self) -> str:
        """Return the report as JSON, one object for each metric."""
        return json.dumps([asdict(each) for each in self.measurements], indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "EvaluationReport":
        """Read what ``to_json`` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            return cls(TypeAdapter(tuple[Measurement, ...]).validate_json(text, strict=True))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"not a report of an evaluation: {place}: {first['msg']}") from None

    def table(self) -> str:
        """Return a table of 80 columns for a terminal; details are on a line of their own."""
        head = ("metric", "value", "95 % interval", "images", "real images")
        rows = [_row(each) for each in self.measurements]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
        lines = [_line(head, widths)]
        for row, measured in zip(rows, self.measurements, strict=True):
            lines.append(_line(row, widths))
            details = [f"{name} {_number(value)}" for name, value in measured.details.items()]
            lines += wrap(", ".join(details), WIDTH, initial_indent="  ", subsequent_indent="  ")
        return "\n".join(lines)


def _row(measured: Measurement) -> tuple[str, str, str, str, str]:
    interval, floor = measured.interval, measured.floor
    return (
        measured.metric,
        _number(measured.value),
        "" if interval is None else f"{_number(interval.low)} to {_number(interval.high)}",
        f"{measured.n:,}",
        "" if floor is None else f"{_number(floor.mean)} (n {floor.n:,})",
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Align the name left and numbers right; a long name has a line of its own."""
    name, *numbers = row
    cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
    own_line = f"{name}\n{'':{widths[0]}}" if len(name) > widths[0] else f"{name:{widths[0]}}"
    return "  ".join([own_line, *cells]).rstrip()


def _number(value: float) -> str:
    """Return three significant digits, without an exponent where that is short."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
