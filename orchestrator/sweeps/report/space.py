"""Metric over the parameters: parallel coordinates, and maps of two parameters."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.tri import LinearTriInterpolator, Triangulation, UniformTriRefiner
from numpy.typing import NDArray

from orchestrator.config.sweep import Value
from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report.drawing import (
    DARK,
    NORMAL,
    SMALL,
    WIDTH,
    escape,
    metric_colormap,
    new_axes,
    new_figure,
    normalize,
    set_axis,
)
from orchestrator.sweeps.report.facts import Point, compare
from orchestrator.sweeps.report.scales import Scale, metric_scale, parameter_scales

MAX_MAPS = 3
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
    figure = new_figure(min(24.0, max(WIDTH, 1.5 * len(scales))), 4.4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.35, len(scales) - 0.65)
    axes.set_ylim(-0.06, 1.06)
    mode = sweep.section.modes[0]
    sign = 1 if mode == "min" else -1
    colours, share = metric_colormap(mode), normalize(metric)
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
    axes.plot([place, place], [0, 1], color=DARK, linewidth=1, zorder=3)
    axes.text(
        place, 1.06, escape(break_label(scale.label)), fontsize=NORMAL, ha="center", va="bottom"
    )
    for tick, name in scale.ticks():
        height = scale.position(tick)
        axes.plot([place - 0.02, place], [height, height], color=DARK, linewidth=1, zorder=3)
        axes.text(
            place - 0.04,
            height,
            escape(name),
            fontsize=SMALL,
            ha="right",
            va="center",
            zorder=4,
            bbox={
                "boxstyle": "square,pad=0.1",
                "facecolor": "white",
                "alpha": 0.75,
                "linewidth": 0,
            },
        )


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
    numbers = [scale for scale in important if scale.is_number and scale.low < scale.high]
    order = {scale.path: rank for rank, scale in enumerate(numbers)}
    pairs = sorted(
        combinations(numbers, 2), key=lambda p: (order[p[0].path] + order[p[1].path], p[1].path)
    )
    return [_map(sweep, points, *pair) for pair in pairs[:MAX_MAPS]] if points else []


def _map(sweep: Sweep, points: tuple[Point, ...], x: Scale, y: Scale) -> Figure:
    """Plot the metric over two parameters, interpolated between the configurations if possible."""
    metric = metric_scale(sweep.section.metrics[0], (p.metrics[0] for p in points))
    colours, share = metric_colormap(sweep.section.modes[0]), normalize(metric)
    figure = new_figure(WIDTH * 0.66, 4.2)
    axes = new_axes(figure)
    axes.grid(False)
    dots = [
        (*place, point.metrics[0])
        for point in points
        if all(
            map(
                math.isfinite, place := tuple(s.to_number(point.values.get(s.path)) for s in (x, y))
            )
        )
    ]
    surface = _surface(dots, x, y)
    if surface is not None and metric.high - metric.low > 1e-9 * abs(metric.high):
        levels = share.inverse(np.linspace(0, 1, 13))
        axes.tricontourf(*surface, levels=levels, cmap=colours, norm=share, extend="both")
    axes.scatter(
        [dot[0] for dot in dots],
        [dot[1] for dot in dots],
        c=[dot[2] for dot in dots],
        cmap=colours,
        norm=share,
        edgecolors="white",
        s=44 if len(dots) <= THIN_ABOVE else 20,
    )
    set_axis(axes, "x", x)
    set_axis(axes, "y", y)
    axes.set_xlim(x.number_at(-MARGIN), x.number_at(1 + MARGIN))
    axes.set_ylim(y.number_at(-MARGIN), y.number_at(1 + MARGIN))
    bar = figure.colorbar(ScalarMappable(share, colours), ax=axes)
    set_axis(bar.ax, "y", metric)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


Surface: TypeAlias = tuple[Triangulation, NDArray[np.float64]]


def _surface(dots: Sequence[tuple[float, ...]], x: Scale, y: Scale) -> Surface | None:
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
    columns, rows = (
        [x.number_at(place) for place in small.x],
        [y.number_at(place) for place in small.y],
    )
    return Triangulation(columns, rows, small.triangles), np.asarray(raised)
