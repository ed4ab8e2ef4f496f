"""A picture of how a job scales."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.diagnostics.scaling_results import Measured, efficiency
from orchestrator.sweeps.report.drawing import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    NORMAL,
    ORANGE,
    SMALL,
    WIDTH,
    new_axes,
    new_figure,
    plain,
)


def scaling_figure(name: str, results: Sequence[Measured]) -> Figure:
    """Images/s beside the ideal, and the parts of a step, over the number of workers."""
    figure = new_figure(WIDTH, 3.8)
    figure.suptitle(plain(f"{name}: batches of {results[0].batch_size} images"), fontsize=NORMAL)
    _rates(new_axes(figure, 1, 2, 1, x="workers", y="images/s"), results)
    _parts(new_axes(figure, 1, 2, 2, x="workers", y="ms a step"), results)
    return figure


def _rates(axes: Axes, results: Sequence[Measured]) -> None:
    base, workers = results[0], [measured.workers for measured in results]
    ideal = [base.images_per_s / base.workers * n for n in workers]
    axes.plot(workers, ideal, "--", color=GREY, linewidth=1.2, label="ideal")
    rates = [measured.images_per_s for measured in results]
    axes.plot(workers, rates, "o-", color=BLUE, linewidth=1.6, markersize=5, label="measured")
    for measured in results[1:]:
        axes.annotate(
            f"{100 * efficiency(measured, base):.0f} %",
            (measured.workers, measured.images_per_s),
            xytext=(0, -14), textcoords="offset points", ha="center", fontsize=SMALL, color=DARK,
        )  # fmt: skip
    axes.set_xticks(workers)
    axes.set_ylim(0, 1.1 * max(*ideal, *rates))
    axes.margins(x=0.1)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left")


def _parts(axes: Axes, results: Sequence[Measured]) -> None:
    places, bottom = range(len(results)), [0.0] * len(results)
    parts = {
        "computation": ([m.computation_s for m in results], BLUE),
        "communication": ([m.communication_s for m in results], ORANGE),
        "data": ([m.data_s for m in results], GREEN),
    }
    for name, (seconds, colour) in parts.items():
        heights = [1000 * value for value in seconds]
        axes.bar(places, heights, 0.6, bottom, color=colour, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(places, [str(measured.workers) for measured in results])
    axes.set_ylim(0, 1.25 * max(bottom))  # room for the names
    axes.legend(fontsize=SMALL, frameon=False, loc="upper center", ncols=3)
