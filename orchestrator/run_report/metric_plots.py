"""Plots of all metrics that runs have logged, by what the metrics are about."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.config.metric_descriptions import (
    COST_METRICS,
    LOOP_METRICS,
    PHASE_METRICS,
    describe_metric,
)
from orchestrator.evaluation.metric_names import EVALUATION
from orchestrator.report.formats import format_value_short
from orchestrator.report.line_plot import Line, line_plot, thin_out
from orchestrator.run_report.run_data import RunData

MAX_POINTS = 60_000
"""Most points of a page, in all plots together."""
MAX_OF_LINE, MIN_OF_LINE = 400, 8
COUNTERS = frozenset({"epoch", *COST_METRICS})
"""Metrics that grow from 0 on, which a logarithmic axis would bend."""
MAIN_RUN_METRICS = ("images_per_s", "data/wait_fraction")
"""Those of the run that are shown at once; the others are folded."""


@dataclass(frozen=True)
class MetricGroup:
    """Metrics of one section."""

    anchor: str
    title: str
    main: tuple[str, ...]
    folded: tuple[str, ...] = ()
    """Metrics to show on demand."""


def group_metrics(runs: Sequence[RunData]) -> list[MetricGroup]:
    """Sort the logged metrics into sections; the models describe their own ones."""
    names = sorted({name for run in runs for name in run.metrics})
    own = list(dict.fromkeys(name for run in runs for name in run.job.model_metrics))
    loop, cost = [n for n in LOOP_METRICS if n in names], [n for n in COST_METRICS if n in names]
    validation = [name for name in names if name.startswith("validation/")]
    evaluation = [name for name in names if name.startswith(EVALUATION)]
    data = [name for name in names if name.startswith("data/") and name not in loop]
    placed = {*loop, *cost, *validation, *evaluation, *data}
    rest = [name for name in names if name not in placed]
    of_phases = [name for name in rest if name.rpartition("/")[2] in PHASE_METRICS]
    losses = [name for name in of_phases if name.endswith("/loss")]
    described = [name for name in own if name in rest and name not in of_phases]
    others = [name for name in rest if name not in of_phases and name not in described]
    main = [*losses, *described, *others]
    return [
        MetricGroup(
            "losses",
            "Losses and metrics of the model",
            tuple(main),
            tuple(name for name in rest if name not in main),
        ),
        MetricGroup("validation", "Validation", tuple(validation)),
        MetricGroup("evaluation", "Evaluation", tuple(evaluation)),
        MetricGroup(
            "speed",
            "Throughput and waiting for data",
            tuple(name for name in MAIN_RUN_METRICS if name in names),
            tuple(n for n in (*loop, *data) if n not in MAIN_RUN_METRICS and n[:6] != "guard/"),
        ),
        MetricGroup(
            "faults", "Restarts and faults", (), tuple(n for n in loop if n[:6] == "guard/")
        ),
        MetricGroup("cost", "Cost", (), tuple(cost)),
    ]


def thin_metrics(runs: Sequence[RunData]) -> list[dict[str, dict[int, float]]]:
    """Thin out the metrics of each run so that a page has room for all; no point is made up."""
    num_lines = sum(len(run.metrics) for run in runs)
    most = max(MIN_OF_LINE, min(MAX_OF_LINE, MAX_POINTS // max(1, num_lines)))
    return [{n: thin_out(series, most) for n, series in run.metrics.items()} for run in runs]


def draw_group(
    group: MetricGroup, runs: Sequence[RunData], points: Sequence[Mapping[str, Mapping[int, float]]]
) -> str:
    """Return the plots of a group, those on demand in a fold; empty if there are none."""
    parts = []
    if group.main:
        parts.append(_plots(group.main, runs, points))
    if group.folded:
        count = f"{len(group.folded)} more" if group.main else f"{len(group.folded)}"
        word = "plot" if len(group.folded) == 1 else "plots"
        parts.append(
            f'<details id="more-{group.anchor}"><summary>{count} {word}</summary>\n'
            f"{_plots(group.folded, runs, points)}\n</details>"
        )
    return "\n".join(parts)


def _plots(
    names: Iterable[str],
    runs: Sequence[RunData],
    points: Sequence[Mapping[str, Mapping[int, float]]],
) -> str:
    figures = []
    for name in names:
        lines = [
            Line(number, run.name, points[number][name], intervals_of(run, name))
            for number, run in enumerate(runs)
            if name in points[number]
        ]
        described = (describe_metric(name, run.job.model_metrics) for run in runs)
        text = first_sentence(next(filter(None, described), ""))
        bars = " Bars: 95 % intervals." if any(line.intervals for line in lines) else ""
        figures.append(
            f'<figure data-metric="{escape(name)}"><h3>{escape(name)}</h3>\n'
            f"{line_plot(name, lines, may_be_log=name not in COUNTERS)}\n"
            f'<figcaption>{escape(text)}{bars}<span class="readout"></span></figcaption></figure>'
        )
    return f'<div class="plots">\n{"".join(figures)}\n</div>'


def intervals_of(run: RunData, name: str) -> dict[int, tuple[float, float]]:
    """Return the intervals of a metric of the evaluation, by images seen."""
    found = {}
    for record in run.facts.evaluations if run.facts else ():
        for measured in record.measurements:
            if f"{EVALUATION}{measured.metric}" == name and measured.interval is not None:
                found[record.images_seen] = (measured.interval.low, measured.interval.high)
    return found


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, without Markdown."""
    return re.split(r"(?<=[.]) (?=[A-Z])", text.replace("`", ""), maxsplit=1)[0]


def embed_points(
    runs: Sequence[RunData], points: Sequence[Mapping[str, Mapping[int, float]]]
) -> str:
    """Return the points of all plots as JSON in an element: run names, and for each metric and run
    its images seen and values, or null.

    A value that is not finite is a string.
    """
    names = sorted({name for series in points for name in series})
    metrics = {
        name: [
            [list(found[name]), list(map(_to_json, found[name].values()))]
            if name in found
            else None
            for found in points
        ]
        for name in names
    }
    text = json.dumps({"runs": [run.name for run in runs], "metrics": metrics})
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="points">{safe}</script>\n'


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def describe_points(
    runs: Sequence[RunData], points: Sequence[Mapping[str, Mapping[int, float]]]
) -> str:
    """Say how many of how many points are shown."""
    shown = sum(len(series) for found in points for series in found.values())
    logged = sum(len(series) for run in runs for series in run.metrics.values())
    if not logged:
        return "No points have been logged yet."
    if shown == logged:
        return f"All {logged:,} points that were logged are shown."
    return (
        f"{shown:,} of {logged:,} logged points are shown: of each stretch of a line the lowest "
        "and the highest, so that no peak is missing."
    )


def format_number(value: float | None) -> str:
    """Format a number for a table."""
    return format_value_short(math.nan if value is None else value)
