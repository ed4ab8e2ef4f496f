"""Learning curves, and the Pareto front of two metrics."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.sweeps.records import RankedConfig, Sweep, Trial, pareto_front, rank_configs
from orchestrator.sweeps.report.drawing import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SMALL,
    WIDTH,
    format_images,
    new_axes,
    new_figure,
    set_axis,
)
from orchestrator.sweeps.report.facts import leading_trials
from orchestrator.sweeps.report.scales import metric_scale

MAX_NAMED = 6
"""Curves with a colour and a label."""
MAX_DOTTED = 12
"""Results of a trial up to which each one is marked with a dot."""
ENDS = {"stopped": ("x", DARK), "diverged": ("D", RED), "failed": ("v", RED)}
"""Markers at the end of a trial."""


def learning_curves(sweep: Sweep) -> Figure | str:
    """Plot each metric over the images seen, a line for each trial; or say why not."""
    if not any(
        math.isfinite(v) for t in sweep.trials for result in t.results for v in result.values
    ):
        return "No trial has reported a result yet."
    metrics = sweep.section.metrics
    figure = new_figure(WIDTH, 4.4 if len(metrics) == 1 else 7.4)
    best = leading_trials(sweep)[:MAX_NAMED]
    dotted = max(len(t.results) for t in sweep.trials) <= MAX_DOTTED
    for metric, name in enumerate(metrics):
        axes = new_axes(figure, len(metrics), 1, metric + 1, x="images seen")
        for trial in sorted(sweep.trials, key=lambda t: t.number in best):
            _curve(axes, trial, metric, best, dotted)
        values = (k.values[metric] for t in sweep.trials for k in t.results)
        set_axis(axes, "y", metric_scale(name, values))
        format_images(axes)
        axes.margins(x=0.02)
        _legend(axes, sweep, best)
    return figure


def _curve(axes: Axes, trial: Trial, metric: int, best: list[int], dotted: bool) -> None:
    images = [result.images_seen for result in trial.results]
    values = [result.values[metric] for result in trial.results]
    rank = best.index(trial.number) if trial.number in best else None
    colour = GREY if rank is None else (BLUE, ORANGE, GREEN)[rank % 3]
    axes.plot(
        images,
        values,
        gid=f"trial {trial.number}",
        color=colour,
        linewidth=0.9 if rank is None else 1.9,
        linestyle="-" if rank is None else ("-", "--", ":")[rank // 3 % 3],
        alpha=0.65 if rank is None else 1.0,
        marker="." if dotted or sum(map(math.isfinite, values)) == 1 else "",
        markersize=4,
    )
    seen = [(x, y) for x, y in zip(images, values, strict=True) if math.isfinite(y)]
    if seen and trial.status in ENDS:
        mark, colour = ENDS[trial.status]
        axes.plot(*seen[-1], mark, color=colour, markersize=5, gid=f"end {trial.number}")


def _legend(axes: Axes, sweep: Sweep, best: list[int]) -> None:
    """Label the best curves by their trial and the end markers by their status."""
    shown = {line.get_gid(): line for line in axes.lines}
    handles, labels = [], []
    for number in best:
        handles.append(shown[f"trial {number}"])
        labels.append(f"trial {number}" + (", the best" if len(best) == 1 else ""))
    for status in ENDS:
        ended = [shown.get(f"end {t.number}") for t in sweep.trials if t.status == status]
        if found := [line for line in ended if line is not None]:
            handles.append(found[0])
            labels.append(status)
    axes.legend(handles, labels, fontsize=SMALL, framealpha=0.9)


def front_figure(sweep: Sweep) -> Figure | str:
    """Plot the finished configurations by two metrics, with the Pareto front; or say why not."""
    found = rank_configs(sweep)
    if not found:
        return "No configuration has finished yet, so there is no Pareto front."
    figure = new_figure(WIDTH * 0.75, 4.8)
    axes = new_axes(figure)
    names = sweep.section.metrics
    set_axis(axes, "x", metric_scale(names[0], (s.means[0] for s in found)))
    set_axis(axes, "y", metric_scale(names[1], (s.means[1] for s in found)))
    front = pareto_front(sweep)
    rest = [s for s in found if s not in front]
    complete = [s for s in rest if s.images_seen >= sweep.total_images]
    early = [s for s in rest if s.images_seen < sweep.total_images]
    for group, label, fill in ((complete, "dominated", GREY), (early, "stopped early", "none")):
        if group:
            x, y = _columns(group)
            axes.plot(x, y, "o", color=GREY, markerfacecolor=fill, markersize=5, label=label)
    style = "steps-post" if sweep.section.modes[0] == "min" else "steps-pre"
    axes.plot(*_columns(_staircase(sweep, front)), color=BLUE, drawstyle=style, gid="front")
    axes.plot(*_columns(front), "o", color=BLUE, markersize=7, label="Pareto front")
    for ranked in front[:20]:
        axes.annotate(
            f"{ranked.trials[0]}",
            (ranked.means[0], ranked.means[1]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=SMALL,
        )
    axes.legend(fontsize=SMALL)
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
