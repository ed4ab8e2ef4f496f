"""Lineage of pbt's trials: their segments and the copies between them."""

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from orchestrator.sweeps.records import Sweep, Trial, TrialSegment
from orchestrator.sweeps.report.drawing import (
    DARK,
    SMALL,
    WIDTH,
    format_images,
    metric_colormap,
    new_axes,
    new_figure,
    normalize,
    set_axis,
)
from orchestrator.sweeps.report.scales import Scale


def lineage_figure(sweep: Sweep, important: list[Scale]) -> Figure | str:
    """Plot a line for each trial, coloured by the most important parameter that changed; or say why
    not. An arrow leads from a copied trial to its copy.
    """
    trials = [t for t in sweep.trials if t.results or len(t.segments) > 1]
    if not trials:
        return "No trial has reported a result yet."
    shown = next((s for s in important if _changes(sweep, s)), important[0])
    figure = new_figure(WIDTH, min(20.0, 1.4 + 0.3 * len(trials)))
    axes = new_axes(figure, x="images seen", y="trial")
    axes.grid(False, axis="y")
    rows = {trial.number: row for row, trial in enumerate(trials)}
    colours, share = metric_colormap("min"), normalize(shown)
    for trial in trials:
        row = rows[trial.number]
        ends = segment_ends(trial)
        lines = [
            [(segment.start_images, row), (end, row)]
            for segment, end in zip(trial.segments, ends, strict=True)
        ]
        numbers = [shown.to_number(segment.values.get(shown.path)) for segment in trial.segments]
        axes.add_collection(
            LineCollection(lines, colors=colours(share(numbers)), linewidths=5, capstyle="butt")
        )
        for segment in trial.segments:
            if segment.parent in rows:
                _arrow(axes, segment, rows[segment.parent], row)
    axes.set_xlim(0, max(1, *(end for t in trials for end in segment_ends(t))) * 1.02)
    axes.set_ylim(len(trials) - 0.4, -0.6)
    step = 1 + len(trials) // 60
    axes.set_yticks(range(0, len(trials), step), [str(t.number) for t in trials[::step]])
    format_images(axes)
    bar = figure.colorbar(ScalarMappable(share, colours), ax=axes, pad=0.02)
    set_axis(bar.ax, "y", shown)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def segment_ends(trial: Trial) -> list[int]:
    """Images seen at the end of each segment: the start of the next one, or the last result."""
    last = max(trial.images_seen, trial.segments[-1].start_images)
    return [segment.start_images for segment in trial.segments[1:]] + [last]


def _changes(sweep: Sweep, scale: Scale) -> bool:
    return any(len({repr(g.values.get(scale.path)) for g in t.segments}) > 1 for t in sweep.trials)


def _arrow(axes: Axes, segment: TrialSegment, parent: int, row: int) -> None:
    """Draw an arrow from the parent's row to the copy's, curved to keep arrows apart."""
    axes.annotate(
        "",
        xy=(segment.start_images, row),
        xytext=(segment.start_images, parent),
        arrowprops={
            "arrowstyle": "-|>",
            "color": DARK,
            "linewidth": 0.9,
            "shrinkA": 0,
            "shrinkB": 2,
            "connectionstyle": "arc3,rad=0.25",
        },
    )
