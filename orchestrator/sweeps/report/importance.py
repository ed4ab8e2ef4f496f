"""Importance of parameters: permutation importance in a random forest (Breiman 2001)."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from orchestrator.report import drawing
from orchestrator.report.axis_scale import Scale
from orchestrator.report.formats import shorten
from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report.facts import MIN_CONFIGURATIONS, Comparison, compare
from orchestrator.sweeps.report.scales import parameter_scales

NUM_TREES, NUM_SHUFFLES = 200, 20
MAX_BARS = 20
MAX_TO_MEDIAN = 30.0
"""Ratio of the largest metric to the median above which the forest is fit on logarithms."""


@dataclass(frozen=True)
class Importance:
    """Importance of all parameters for one metric."""

    metric: str
    parameters: tuple[Scale, ...]
    """The most important first."""
    drops: tuple[float, ...]
    """Loss of the forest's R² when a parameter's values are shuffled: means over shuffles."""
    spreads: tuple[float, ...]
    """Standard deviations over shuffles."""
    num_configurations: int
    oob_r2: float
    """Out-of-bag R²; at 0 or below the forest has learnt nothing and the drops mean nothing."""
    basis: Comparison


def compute_importance(sweep: Sweep, metric: int = 0) -> Importance | str:
    """Rank the parameters by their importance for the metric; or say why that is not possible.

    The forest is fit on the finished configurations. Categories are encoded in the order of the job
    file.
    """
    basis = compare(sweep)
    scales = parameter_scales(sweep)
    rows = [[scale.to_linear(p.values.get(scale.path)) for scale in scales] for p in basis.points]
    kept = [k for k, row in enumerate(rows) if all(map(math.isfinite, row))]
    if len(kept) < MIN_CONFIGURATIONS:
        return (
            f"Too few configurations for importances: {len(kept)} can be compared, "
            f"and at least {MIN_CONFIGURATIONS} are needed."
        )
    inputs = np.array([rows[k] for k in kept])
    outputs = np.array([basis.points[k].metrics[metric] for k in kept])
    if outputs.min() > 0 and outputs.max() > MAX_TO_MEDIAN * np.median(outputs):
        outputs = np.log(outputs)
    if np.ptp(outputs) == 0:
        return "No importances: all configurations have the same metric."
    forest = RandomForestRegressor(NUM_TREES, oob_score=True, random_state=0).fit(inputs, outputs)
    found = permutation_importance(forest, inputs, outputs, n_repeats=NUM_SHUFFLES, random_state=0)
    drops, spreads = found.importances_mean, found.importances_std
    order = sorted(range(len(scales)), key=lambda k: (-drops[k], k))
    return Importance(
        metric=sweep.section.metrics[metric],
        parameters=tuple(scales[k] for k in order),
        drops=tuple(float(drops[k]) for k in order),
        spreads=tuple(float(spreads[k]) for k in order),
        num_configurations=len(kept),
        oob_r2=float(forest.oob_score_),
        basis=basis,
    )


def importance_figure(found: list[Importance]) -> Figure:
    """Plot a bar for each parameter, the most important on top, and the metrics side by side."""
    most = min(MAX_BARS, len(found[0].parameters))
    figure = drawing.new_figure(drawing.WIDTH, 1.3 + 0.32 * most)
    for column, one in enumerate(found):
        axes = drawing.new_axes(figure, 1, len(found), column + 1, x="loss of R² when shuffled")
        places, style = range(most), {"ecolor": drawing.DARK, "elinewidth": 1, "capsize": 2}
        drops, spreads = one.drops[:most], one.spreads[:most]
        axes.barh(places, drops, 0.65, xerr=spreads, color=drawing.BLUE, error_kw=style)
        axes.set_yticks(places, [drawing.escape(scale.label) for scale in one.parameters[:most]])
        axes.set_ylim(most - 0.4, -0.6)
        axes.grid(False, axis="y")
        title = f"{shorten(one.metric)} ({one.num_configurations} configurations)"
        axes.set_title(drawing.escape(title), fontsize=drawing.NORMAL, loc="left")
    return figure
