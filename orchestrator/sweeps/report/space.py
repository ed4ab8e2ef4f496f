"""Metric over the parameters: parallel coordinates, and maps of two parameters."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import LinearTriInterpolator, Triangulation, UniformTriRefiner
from numpy.typing import NDArray

from orchestrator.config.sweep import Value
from orchestrator.report import drawing
from orchestrator.report.axis_scale import Scale, metric_scale
from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report.facts import Point, compare
from orchestrator.sweeps.report.scales import parameter_scales

MAX_MAPS = 3
TICK_BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
THIN_ABOVE = 60
"""Configurations above which lines are thin and dots small."""
SPREAD = 0.08
"""Share of an axis over which lines through one value are spread."""
MARGIN = 0.03
"""Margin of a map, as a share of its axes."""
SUBDIVISIONS = 3
"""Subdivisions of a map's triangles, whose straight sides are curves on a logarithmic axis."""


def parallel_figure(sweep: Sweep) -> Figure | str:
    """Plot a line for each configuration through its values and its metric; or say why not."""
    points = compare(sweep).points
    if not points:
        return "No configuration has finished yet."
    metric = metric_scale(sweep.section.metrics[0], (p.metrics[0] for p in points))
    scales = [*parameter_scales(sweep), metric]
    figure = drawing.new_figure(min(24.0, max(drawing.WIDTH, 1.5 * len(scales))), 4.4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.35, len(scales) - 0.65)
    axes.set_ylim(-0.06, 1.06)
    mode = sweep.section.modes[0]
    sign = 1 if mode == "min" else -1
    colours, share = drawing.metric_colormap(mode), drawing.normalize(metric)
    worst_first = sorted(points, key=lambda p: -sign * p.metrics[0])
    columns = [
        _spread([_position(scale, point.values.get(scale.path)) for point in worst_first])
        for scale in scales[:-1]
    ]
    columns.append([_position(metric, point.metrics[0]) for point in worst_first])
    thin = 1.1 if len(points) <= THIN_ABOVE else 0.6
    for point, heights in zip(worst_first, zip(*columns, strict=True), strict=True):
        width = 2.6 if point is worst_first[-1] else thin
        colour = colours(float(share(point.metrics[0])))
        axes.plot(heights, color=colour, linewidth=width, alpha=0.9, gid="line")
    for place, scale in enumerate(scales):
        _draw_vertical_axis(axes, place, scale)
    return figure


def _position(scale: Scale, value: Value) -> float:
    number = scale.to_number(value)
    return scale.position(number) if math.isfinite(number) else math.nan


def _spread(heights: list[float]) -> list[float]:
    """Move equal heights a little apart, so that their lines do not hide each other.

    The last one, which is the best, stays in the middle.
    """
    left = Counter(heights)
    found = []
    for height in heights:
        left[height] -= 1
        step = (left[height] + 1) // 2 * (1 if left[height] % 2 else -1)
        found.append(height + step * min(0.012, SPREAD / heights.count(height)))
    return found


def _draw_vertical_axis(axes: Axes, place: int, scale: Scale) -> None:
    """Draw one of the parallel axes at x = ``place``."""
    axes.plot([place, place], [0, 1], color=drawing.DARK, linewidth=1, zorder=3)
    label = drawing.escape(break_label(scale.label))
    axes.text(place, 1.06, label, fontsize=drawing.NORMAL, ha="center", va="bottom")
    for tick, name in scale.ticks():
        height = scale.position(tick)
        axes.plot(
            [place - 0.02, place], [height, height], color=drawing.DARK, linewidth=1, zorder=3
        )
        style: dict[str, Any] = {
            "fontsize": drawing.SMALL,
            "ha": "right",
            "va": "center",
            "zorder": 4,
        }
        axes.text(place - 0.04, height, drawing.escape(name), bbox=TICK_BOX, **style)


def break_label(label: str, length: int = 18) -> str:
    """Break a long label into two lines."""
    if len(label) <= length:
        return label
    middle = len(label) // 2
    breaks = [k + 1 for k, letter in enumerate(label[:-1]) if letter in "_./ "]
    best = min(breaks, key=lambda k: abs(k - middle), default=middle)
    return f"{label[:best]}\n{label[best:]}"


def map_figures(sweep: Sweep, important: list[Scale]) -> list[Figure]:
    """Plot maps of the metric over pairs of numeric parameters, the most important pairs first."""
    points = compare(sweep).points
    numbers = [scale for scale in important if not scale.categories and scale.low < scale.high]
    ranks = combinations(range(len(numbers)), 2)
    pairs = sorted(ranks, key=lambda pair: (sum(pair), numbers[pair[1]].path))[:MAX_MAPS]
    return [_map(sweep, points, numbers[i], numbers[j]) for i, j in pairs] if points else []


def _map(sweep: Sweep, points: tuple[Point, ...], x: Scale, y: Scale) -> Figure:
    """Plot the metric over two parameters, interpolated between the configurations if possible."""
    metric = metric_scale(sweep.section.metrics[0], (p.metrics[0] for p in points))
    colours, share = drawing.metric_colormap(sweep.section.modes[0]), drawing.normalize(metric)
    figure = drawing.new_figure(drawing.WIDTH * 0.66, 4.2)
    axes = drawing.new_axes(figure)
    axes.grid(False)
    dots = []
    for point in points:
        place = [scale.to_number(point.values.get(scale.path)) for scale in (x, y)]
        if all(map(math.isfinite, place)):
            dots.append((*place, point.metrics[0]))
    surface = _surface(dots, x, y)
    if surface is not None and metric.high - metric.low > 1e-9 * abs(metric.high):
        levels = share.inverse(np.linspace(0, 1, 13))
        axes.tricontourf(*surface, levels=levels, cmap=colours, norm=share, extend="both")
    across, up, found = zip(*dots, strict=True) if dots else ((), (), ())
    size = 44 if len(dots) <= THIN_ABOVE else 20
    axes.scatter(across, up, size, found, cmap=colours, norm=share, edgecolors="white")
    drawing.set_axis(axes, "x", x)
    drawing.set_axis(axes, "y", y)
    axes.set_xlim(x.number_at(-MARGIN), x.number_at(1 + MARGIN))
    axes.set_ylim(y.number_at(-MARGIN), y.number_at(1 + MARGIN))
    drawing.add_colorbar(axes, metric, share, colours)
    return figure


def _surface(
    dots: Sequence[tuple[float, ...]], x: Scale, y: Scale
) -> tuple[Triangulation, NDArray[np.float64]] | None:
    """Interpolate the metric between the dots on small triangles; None if they span no area.

    The interpolation is linear on the axes, so in the logarithm of a parameter on a log axis.
    Dots at one position are averaged.
    """
    heights: dict[tuple[float, float], list[float]] = {}
    for across, up, metric in dots:
        heights.setdefault((x.position(across), y.position(up)), []).append(metric)
    places = np.array(list(heights))
    if len(places) < 4 or np.linalg.matrix_rank(places - places.mean(axis=0), tol=1e-6) < 2:
        return None
    means = [sum(found) / len(found) for found in heights.values()]
    try:
        large = Triangulation(*places.T)
        between = LinearTriInterpolator(large, means)
        small, raised = UniformTriRefiner(large).refine_field(means, between, subdiv=SUBDIVISIONS)
    except (RuntimeError, ValueError):  # degenerate triangles
        return None
    columns, rows = list(map(x.number_at, small.x)), list(map(y.number_at, small.y))
    return Triangulation(columns, rows, small.triangles), np.asarray(raised)
