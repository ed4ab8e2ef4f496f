"""Who was copied from whom: the legs of the trainings of a sweep with the scheduler pbt."""

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from orchestrator.sweeps.records import Leg, Sweep, Trial
from orchestrator.sweeps.report.drawing import (
    DARK,
    SMALL,
    WIDTH,
    new_axes,
    new_figure,
    norm,
    set_axis,
    shades,
    thousands,
)
from orchestrator.sweeps.report.scales import Scale


def lineage_figure(sweep: Sweep, important: list[Scale]) -> Figure | str:
    """A line for each trial, coloured by the parameter that matters most of those that changed.

    An arrow leads from the trial that was copied to the one that goes on from the copy.
    """
    trials = [t for t in sweep.trials if t.looks or len(t.legs) > 1]
    if not trials:
        return "No training has been looked at yet."
    shown = next((s for s in important if _changes(sweep, s)), important[0])
    figure = new_figure(WIDTH, min(20.0, 1.4 + 0.3 * len(trials)))
    axes = new_axes(figure, x="images seen", y="trial")
    axes.grid(False, axis="y")
    rows = {trial.number: row for row, trial in enumerate(trials)}
    colours, share = shades("min"), norm(shown)
    for trial in trials:
        row = rows[trial.number]
        ends = leg_ends(trial)
        lines = [
            [(leg.from_images, row), (end, row)] for leg, end in zip(trial.legs, ends, strict=True)
        ]
        numbers = [shown.number(leg.values.get(shown.path)) for leg in trial.legs]
        axes.add_collection(
            LineCollection(lines, colors=colours(share(numbers)), linewidths=5, capstyle="butt")
        )
        for leg in trial.legs:
            if leg.parent in rows:
                _arrow(axes, leg, rows[leg.parent], row)
    axes.set_xlim(0, max(1, *(end for t in trials for end in leg_ends(t))) * 1.02)
    axes.set_ylim(len(trials) - 0.4, -0.6)
    step = 1 + len(trials) // 60
    axes.set_yticks(range(0, len(trials), step), [str(t.number) for t in trials[::step]])
    thousands(axes)
    bar = figure.colorbar(ScalarMappable(share, colours), ax=axes, pad=0.02)
    set_axis(bar.ax, "y", shown)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def leg_ends(trial: Trial) -> list[int]:
    """Images seen at the end of each leg: where the next one starts, or the last look."""
    last = max(trial.images_seen, trial.legs[-1].from_images)
    return [leg.from_images for leg in trial.legs[1:]] + [last]


def _changes(sweep: Sweep, scale: Scale) -> bool:
    return any(len({repr(g.values.get(scale.path)) for g in t.legs}) > 1 for t in sweep.trials)


def _arrow(axes: Axes, leg: Leg, parent: int, row: int) -> None:
    """From the row of the parent to the one of the copy, bent so that arrows stay apart."""
    axes.annotate(
        "",
        xy=(leg.from_images, row),
        xytext=(leg.from_images, parent),
        arrowprops={
            "arrowstyle": "-|>",
            "color": DARK,
            "linewidth": 0.9,
            "shrinkA": 0,
            "shrinkB": 2,
            "connectionstyle": "arc3,rad=0.25",
        },
    )
