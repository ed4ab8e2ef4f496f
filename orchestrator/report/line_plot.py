"""Line plots as SVG, whose colours follow the page: light, dark or printed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape

from orchestrator.report.axis_scale import Scale, metric_scale
from orchestrator.report.formats import format_value_short

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 36
"""Margins around the lines, in units of the view box."""
MAX_DOTTED = 12
"""Points of a line up to which each one gets a dot."""
MAX_LINES = 8
"""Lines with a colour and dashes of their own, in line_plot.css."""
PADDING = 0.05
"""Share of the height that stays free above and below the lines."""


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    number: int
    """Of its colour and dashes, from 0; below MAX_LINES."""
    name: str
    points: Mapping[int, float]
    """Values by images seen, ascending; those that are not finite leave a gap and a cross."""
    intervals: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Low and high end around some of the points."""


def thin_out(points: Mapping[int, float], most: int) -> dict[int, float]:
    """Select at most ``most`` points, at least 8, and none that is made up.

    They are the first and the last one, and of each stretch in between the lowest, the highest and
    the first one that is not finite: peaks stay.
    """
    steps = list(points)
    if len(steps) <= most:
        return dict(points)
    num_stretches = (most - 2) // 3
    kept = {steps[0], steps[-1]}
    for k in range(num_stretches):
        stretch = steps[k * len(steps) // num_stretches : (k + 1) * len(steps) // num_stretches]
        finite = [step for step in stretch if math.isfinite(points[step])]
        if finite:
            kept |= {min(finite, key=points.__getitem__), max(finite, key=points.__getitem__)}
        kept.update([step for step in stretch if not math.isfinite(points[step])][:1])
    return {step: points[step] for step in steps if step in kept}


def line_plot(name: str, lines: Sequence[Line], *, may_be_log: bool = True) -> str:
    """Plot ``lines`` over the images seen. Text for readers of screens says the ends of each.

    Positive values that span orders of magnitude are on a logarithmic axis, if it ``may_be_log``.
    """
    ends = [end for line in lines for pair in line.intervals.values() for end in pair]
    values = [value for line in lines for value in line.points.values()]
    y = metric_scale(name, [*values, *ends])
    y = replace(y, log=y.log and may_be_log)
    last = max((step for line in lines for step in line.points), default=0)
    x = Scale("images seen", "images seen", 0.0, float(max(last, 1)), integer=True)
    parts = [*_grid(x, y), *(part for line in lines for part in _marks(line, x, y))]
    label = f"{name} over images seen. {' '.join(_describe(line) for line in lines)}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'data-last="{x.high:.0f}">{"".join(parts)}</svg>'
    )


def swatch(number: int) -> str:
    """Draw a piece of the line with this number, for a legend."""
    return (
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        f'<path class="line l{number}" d="M0 4H28"/></svg>'
    )


def _describe(line: Line) -> str:
    finite = {step: value for step, value in line.points.items() if math.isfinite(value)}
    num_bad = len(line.points) - len(finite)
    bad = f" {num_bad} values are not finite." if num_bad else ""
    if not finite:
        return f"{line.name}: no finite value.{bad}"
    (first, start), (last, end) = next(iter(finite.items())), list(finite.items())[-1]
    if first == last:
        return f"{line.name}: {format_value_short(end)} at {last:,} images.{bad}"
    low, high = min(finite.values()), max(finite.values())
    return (
        f"{line.name}: from {format_value_short(start)} at {first:,} images to "
        f"{format_value_short(end)} at {last:,}, between {format_value_short(low)} and "
        f"{format_value_short(high)}.{bad}"
    )


def _x(step: float, scale: Scale) -> str:
    return f"{LEFT + (WIDTH - LEFT - RIGHT) * scale.position(step):.1f}"


def _y(value: float, scale: Scale) -> str:
    share = PADDING + (1 - 2 * PADDING) * scale.position(value)
    return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share:.1f}"


def _grid(x: Scale, y: Scale) -> Iterator[str]:
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    for place, _ in y.ticks():
        at = _y(place, y)
        yield f'<path class="grid" d="M{LEFT} {at}H{right}"/>'
        # Four digits are not enough for a range like 0.99991 to 0.99993.
        text = f"{place:.4g}" if y.high - y.low > abs(y.high) / 500 else f"{place:.7g}"
        yield f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{text}</text>'
    for place, _ in x.ticks():
        at = _x(place, x)
        yield f'<path class="grid" d="M{at} {floor}v4"/>'
        yield (
            f'<text class="tick" x="{at}" y="{floor + 16}" text-anchor="middle">'
            f"{_compact(place)}</text>"
        )
    yield f'<path class="axis" d="M{LEFT} {floor}H{right}"/>'
    yield (
        f'<text class="tick" x="{right}" y="{HEIGHT - 4}" text-anchor="end">images seen'
        f"{'; values on a log scale' if y.log else ''}</text>"
    )


def _compact(number: float) -> str:
    """Format a count with k or M: five of them stand below one axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def _marks(line: Line, x: Scale, y: Scale) -> Iterator[str]:
    kind = f"l{line.number}"
    path, is_open, bad = [], False, []
    for step, value in line.points.items():
        if not math.isfinite(value):
            bad.append(f"M{_x(step, x)} {TOP}l6 6m0 -6l-6 6")
            is_open = False
            continue
        path.append(f"{'L' if is_open else 'M'}{_x(step, x)} {_y(value, y)}")
        is_open = True
    bars = [
        f"M{_x(step, x)} {_y(low, y)}V{_y(high, y)}" for step, (low, high) in line.intervals.items()
    ]
    for shapes, name in ((bars, "bar"), (path, "line"), (bad, "cross")):
        if shapes:
            yield f'<path class="{name} {kind}" d="{"".join(shapes)}"/>'
    if len(line.points) <= MAX_DOTTED:
        for step, value in line.points.items():
            if math.isfinite(value):
                yield f'<circle class="dot {kind}" cx="{_x(step, x)}" cy="{_y(value, y)}" r="2.6"/>'
