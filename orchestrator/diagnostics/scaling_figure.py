"""Plot how a job scales with its number of workers."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.diagnostics.scaling_results import ScalingResult, efficiency
from orchestrator.report.drawing import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    NORMAL,
    ORANGE,
    SMALL,
    WIDTH,
    escape,
    new_axes,
    new_figure,
)


def scaling_figure(name: str, results: Sequence[ScalingResult]) -> Figure:
    """Plot images/s against ideal scaling, and the parts of a step, by number of workers."""
    figure = new_figure(WIDTH, 3.8)
    figure.suptitle(escape(f"{name}: batches of {results[0].batch_size} images"), fontsize=NORMAL)
    _plot_throughput(new_axes(figure, 1, 2, 1, x="workers", y="images/s"), results)
    _plot_step_parts(new_axes(figure, 1, 2, 2, x="workers", y="ms per step"), results)
    return figure


def _plot_throughput(axes: Axes, results: Sequence[ScalingResult]) -> None:
    base, workers = results[0], [result.workers for result in results]
    ideal = [base.images_per_s / base.workers * n for n in workers]
    axes.plot(workers, ideal, "--", color=GREY, linewidth=1.2, label="ideal")
    rates = [result.images_per_s for result in results]
    axes.plot(workers, rates, "o-", color=BLUE, linewidth=1.6, markersize=5, label="measured")
    for result in results[1:]:
        axes.annotate(
            f"{100 * efficiency(result, base):.0f} %",
            (result.workers, result.images_per_s),
            xytext=(0, -14), textcoords="offset points", ha="center", fontsize=SMALL, color=DARK,
        )  # fmt: skip
    axes.set_xticks(workers)
    axes.set_ylim(0, 1.1 * max(*ideal, *rates))
    axes.margins(x=0.1)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left")


def _plot_step_parts(axes: Axes, results: Sequence[ScalingResult]) -> None:
    positions, bottom = range(len(results)), [0.0] * len(results)
    parts = {
        "compute": ([result.mean.computation_s for result in results], BLUE),
        "communication": ([result.mean.communication_s for result in results], ORANGE),
        "data wait": ([result.mean.data_s for result in results], GREEN),
    }
    for name, (seconds, colour) in parts.items():
        heights = [1000 * value for value in seconds]
        axes.bar(positions, heights, 0.6, bottom, color=colour, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(positions, [str(result.workers) for result in results])
    axes.set_ylim(0, 1.25 * max(bottom))  # leaves space for the legend
    axes.legend(fontsize=SMALL, frameon=False, loc="upper center", ncols=3)
