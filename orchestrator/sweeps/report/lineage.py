"""Lineage of pbt's trials: their segments and the copies between them."""

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from orchestrator.report import drawing
from orchestrator.report.axis_scale import Scale
from orchestrator.sweeps.records import Sweep, Trial, TrialSegment

ARROW = {"arrowstyle": "-|>", "color": drawing.DARK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 2}
ARROW |= {"connectionstyle": "arc3,rad=0.25"}
"""From a copied trial to its copy, curved to keep arrows apart."""


def lineage_figure(sweep: Sweep, important: list[Scale]) -> Figure | str:
    """Plot a line for each trial, coloured by the most important parameter that changed; or say why
    not. An arrow leads from a copied trial to its copy.
    """
    trials = [t for t in sweep.trials if t.results or len(t.segments) > 1]
    if not trials:
        return "No trial has reported a result yet."
    shown = next((s for s in important if _changes(sweep, s)), important[0])
    figure = drawing.new_figure(drawing.WIDTH, min(20.0, 1.4 + 0.3 * len(trials)))
    axes = drawing.new_axes(figure, x="images seen", y="trial")
    axes.grid(False, axis="y")
    rows = {trial.number: row for row, trial in enumerate(trials)}
    colours, share = drawing.metric_colormap("min"), drawing.normalize(shown)
    for row, trial in enumerate(trials):
        spans = segments_with_ends(trial)
        lines = [[(segment.start_images, row), (end, row)] for segment, end in spans]
        numbers = [shown.to_number(segment.values.get(shown.path)) for segment in trial.segments]
        shades = colours(share(numbers))
        axes.add_collection(LineCollection(lines, colors=shades, linewidths=5, capstyle="butt"))
        for segment in trial.segments:
            if segment.parent in rows:
                start, parent = segment.start_images, rows[segment.parent]
                axes.annotate("", (start, row), (start, parent), arrowprops=ARROW)
    axes.set_xlim(0, max(1, *(end for t in trials for _, end in segments_with_ends(t))) * 1.02)
    axes.set_ylim(len(trials) - 0.4, -0.6)
    step = 1 + len(trials) // 60
    axes.set_yticks(range(0, len(trials), step), [str(t.number) for t in trials[::step]])
    drawing.format_images(axes)
    drawing.add_colorbar(axes, shown, share, colours, pad=0.02)
    return figure


def segments_with_ends(trial: Trial) -> list[tuple[TrialSegment, int]]:
    """Pair each segment with the images seen at its end: the next one's start or last result."""
    last = max(trial.images_seen, trial.segments[-1].start_images)
    ends = [segment.start_images for segment in trial.segments[1:]] + [last]
    return list(zip(trial.segments, ends, strict=True))


def _changes(sweep: Sweep, scale: Scale) -> bool:
    return any(len({repr(g.values.get(scale.path)) for g in t.segments}) > 1 for t in sweep.trials)
