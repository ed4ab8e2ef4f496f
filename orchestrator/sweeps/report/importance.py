"""Which parameters matter: how much worse a forest guesses the metric without each of them."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report.drawing import BLUE, DARK, WIDTH, new_axes, new_figure, plain
from orchestrator.sweeps.report.facts import ENOUGH, WIDE, Comparison, compare, cut
from orchestrator.sweeps.report.scales import Scale, parameter_scales

TREES, SHUFFLES = 200, 20
MOST = 20
"""Most bars."""


@dataclass(frozen=True)
class Importance:
    """What one metric depends on."""

    metric: str
    parameters: tuple[Scale, ...]
    """The most important first."""
    drops: tuple[float, ...]
    """By how much the share of the metric's variance that the forest explains becomes less when
    the values of the parameter are shuffled: a mean over shuffles."""
    spreads: tuple[float, ...]
    """Standard deviations over the shuffles."""
    configurations: int
    explained: float
    """Share of the variance that the forest explains in configurations that it was not fit on; 0
    or less: it knows nothing."""
    basis: Comparison


def importance(sweep: Sweep, metric: int = 0) -> Importance | str:
    """The parameters by how much the metric depends on them; or why that cannot be told.

    A forest of regression trees is fit on the configurations that are done; categories are numbers
    to it, in the order of the job file, and a metric whose worst is 30 times the median is its
    logarithm. Whoever shuffles a parameter that matters gets worse guesses.
    """
    basis = compare(sweep)
    scales = parameter_scales(sweep)
    rows = [[scale.even(p.values.get(scale.path)) for scale in scales] for p in basis.points]
    kept = [k for k, row in enumerate(rows) if all(map(math.isfinite, row))]
    if len(kept) < ENOUGH:
        return (
            f"Too few to tell which parameters matter: {len(kept)} configurations can be compared, "
            f"and at least {ENOUGH} are needed."
        )
    inputs = np.array([rows[k] for k in kept])
    outputs = np.array([basis.points[k].metrics[metric] for k in kept])
    if outputs.min() > 0 and outputs.max() > WIDE * np.median(outputs):
        outputs = np.log(outputs)
    if np.ptp(outputs) == 0:
        return "No parameter matters so far: all configurations have the same metric."
    forest = RandomForestRegressor(TREES, oob_score=True, random_state=0).fit(inputs, outputs)
    found = permutation_importance(forest, inputs, outputs, n_repeats=SHUFFLES, random_state=0)
    drops, spreads = found.importances_mean, found.importances_std
    order = sorted(range(len(scales)), key=lambda k: (-drops[k], k))
    return Importance(
        metric=sweep.section.metrics[metric],
        parameters=tuple(scales[k] for k in order),
        drops=tuple(float(drops[k]) for k in order),
        spreads=tuple(float(spreads[k]) for k in order),
        configurations=len(kept),
        explained=float(forest.oob_score_),
        basis=basis,
    )


def importance_figure(found: list[Importance]) -> Figure:
    """A bar for each parameter, the most important one on top; beside each other the metrics."""
    most = min(MOST, len(found[0].parameters))
    figure = new_figure(WIDTH, 1.3 + 0.32 * most)
    for column, one in enumerate(found):
        axes = new_axes(figure, 1, len(found), column + 1, x="loss of R² when shuffled")
        places = range(most)
        axes.barh(
            places,
            one.drops[:most],
            xerr=one.spreads[:most],
            color=BLUE,
            height=0.65,
            error_kw={"ecolor": DARK, "elinewidth": 1, "capsize": 2},
        )
        axes.set_yticks(places, [plain(scale.label) for scale in one.parameters[:most]])
        axes.set_ylim(most - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_title(
            plain(f"{cut(one.metric)} ({one.configurations} configurations)"),
            fontsize=9,
            loc="left",
        )
    return figure
