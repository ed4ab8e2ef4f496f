"""Learning curves, and the Pareto front of two metrics."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report import drawing
from orchestrator.report.axis_scale import metric_scale
from orchestrator.sweeps.records import RankedConfig, Sweep, Trial, pareto_front, rank_configs
from orchestrator.sweeps.report.facts import leading_trials

COLOURS, DASHES = (drawing.BLUE, drawing.ORANGE, drawing.GREEN), ("-", "--")
MAX_NAMED = len(COLOURS) * len(DASHES)
"""Curves with a colour and a label."""
MAX_DOTTED = 12
"""Results of a trial up to which each one is marked with a dot."""
ENDS = {
    "stopped": ("x", drawing.DARK),
    "diverged": ("D", drawing.RED),
    "failed": ("v", drawing.RED),
}
"""Markers at the end of a trial."""


def learning_curves(sweep: Sweep) -> Figure | str:
    """Plot each metric over the images seen, a line for each trial; or say why not."""
    results = [result for trial in sweep.trials for result in trial.results]
    if not any(math.isfinite(value) for result in results for value in result.values):
        return "No trial has reported a result yet."
    metrics = sweep.section.metrics
    figure = drawing.new_figure(drawing.WIDTH, 4.4 if len(metrics) == 1 else 7.4)
    best = leading_trials(sweep)[:MAX_NAMED]
    dotted = max(len(t.results) for t in sweep.trials) <= MAX_DOTTED
    for metric, name in enumerate(metrics):
        axes = drawing.new_axes(figure, len(metrics), 1, metric + 1, x="images seen")
        for trial in sorted(sweep.trials, key=lambda t: t.number in best):
            _curve(axes, trial, metric, best, dotted)
        drawing.set_axis(axes, "y", metric_scale(name, (k.values[metric] for k in results)))
        drawing.format_images(axes)
        axes.margins(x=0.02)
        _legend(axes, sweep, best)
    return figure


def _curve(axes: Axes, trial: Trial, metric: int, best: list[int], dotted: bool) -> None:
    images = [result.images_seen for result in trial.results]
    values = [result.values[metric] for result in trial.results]
    seen = [(x, y) for x, y in zip(images, values, strict=True) if math.isfinite(y)]
    style: dict[str, Any] = {"color": drawing.GREY, "linewidth": 0.9, "alpha": 0.65}
    if trial.number in best:
        row, column = divmod(best.index(trial.number), len(COLOURS))
        style = {"color": COLOURS[column], "linewidth": 1.9, "linestyle": DASHES[row]}
    marker = "." if dotted or len(seen) == 1 else ""
    axes.plot(images, values, marker=marker, markersize=4, gid=f"trial {trial.number}", **style)
    if seen and trial.status in ENDS:
        mark, colour = ENDS[trial.status]
        axes.plot(*seen[-1], mark, color=colour, markersize=5, gid=f"end {trial.number}")


def _legend(axes: Axes, sweep: Sweep, best: list[int]) -> None:
    """Label the best curves by their trial and the end markers by their status."""
    shown = {line.get_gid(): line for line in axes.lines}
    suffix = ", the best" if len(best) == 1 else ""
    lines = {f"trial {number}{suffix}": shown[f"trial {number}"] for number in best}
    for status in ENDS:
        ends = (shown.get(f"end {t.number}") for t in sweep.trials if t.status == status)
        if (line := next(filter(None, ends), None)) is not None:
            lines[status] = line
    axes.legend(lines.values(), lines, fontsize=drawing.SMALL, framealpha=0.9)


def front_figure(sweep: Sweep) -> Figure | str:
    """Plot the finished configurations by two metrics, with the Pareto front; or say why not."""
    found = rank_configs(sweep)
    if not found:
        return "No configuration has finished yet, so there is no Pareto front."
    figure = drawing.new_figure(drawing.WIDTH * 0.75, 4.8)
    axes = drawing.new_axes(figure)
    names = sweep.section.metrics
    drawing.set_axis(axes, "x", metric_scale(names[0], (s.means[0] for s in found)))
    drawing.set_axis(axes, "y", metric_scale(names[1], (s.means[1] for s in found)))
    front = pareto_front(sweep)
    rest = [s for s in found if s not in front]
    style: dict[str, Any] = {"color": drawing.GREY, "markersize": 5}
    if complete := [s for s in rest if s.images_seen >= sweep.total_images]:
        axes.plot(*_columns(complete), "o", label="dominated", **style)
    if early := [s for s in rest if s.images_seen < sweep.total_images]:
        axes.plot(*_columns(early), "o", label="stopped early", markerfacecolor="none", **style)
    steps = "steps-post" if sweep.section.modes[0] == "min" else "steps-pre"
    axes.plot(*_columns(_staircase(sweep, front)), color=drawing.BLUE, drawstyle=steps, gid="front")
    axes.plot(*_columns(front), "o", color=drawing.BLUE, markersize=7, label="Pareto front")
    for ranked in front[:20]:
        name, place = f"{ranked.trials[0]}", (ranked.means[0], ranked.means[1])
        axes.annotate(name, place, (5, 4), textcoords="offset points", fontsize=drawing.SMALL)
    axes.legend(fontsize=drawing.SMALL)
    return figure


def _columns(found: list[RankedConfig]) -> tuple[list[float], list[float]]:
    return [s.means[0] for s in found], [s.means[1] for s in found]


def _staircase(sweep: Sweep, front: list[RankedConfig]) -> list[RankedConfig]:
    """Select the points of the front that form a staircase, from left to right.

    The front may have a configuration that stopped early although one that trained longer is
    better; it is a point beside the stairs.
    """
    signs = [1 if mode == "min" else -1 for mode in sweep.section.modes]
    ordered = sorted(front, key=lambda s: (signs[0] * s.means[0], signs[1] * s.means[1]))
    stairs: list[RankedConfig] = []
    for ranked in ordered:
        if not stairs or signs[1] * ranked.means[1] < signs[1] * stairs[-1].means[1]:
            stairs.append(ranked)
    return stairs if signs[0] == 1 else stairs[::-1]
