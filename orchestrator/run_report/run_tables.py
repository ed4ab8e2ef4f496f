"""Tables of a report on runs: a column for each run."""

import datetime
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape

from orchestrator.evaluation.metric_names import EVALUATION
from orchestrator.redaction import mask
from orchestrator.report.formats import NONE, format_value_short
from orchestrator.report.line_plot import swatch
from orchestrator.report.markup import cell, paragraph, table, wide
from orchestrator.run_report.run_data import RunData
from orchestrator.tracking.run_history import Series

Row = tuple[str, Callable[[RunData], str]]


def overview(runs: Sequence[RunData]) -> str:
    """Compare the runs in a few lines."""
    rows: list[Row] = [
        ("Model", lambda run: str(run.job.values.get("model.name", NONE))),
        ("Status", lambda run: run.status),
        ("Images seen", _images_seen),
        ("Started", _started),
        ("Took", _duration),
        ("Images per second, median", lambda run: _median(run.metrics.get("images_per_s", {}))),
        ("Waiting for data, mean", _data_wait),
        ("Used", _used),
        ("MLflow run", lambda run: run.address.mlflow_run_id),
        ("Storage", _place),
    ]
    return _by_run(runs, rows)


def faults_table(runs: Sequence[RunData]) -> str:
    """Tell what went wrong and was survived."""
    rows: list[Row] = [
        ("Drivers, by how they ended", _drivers),
        ("Restarts of the workers", _restarts),
        ("Rollbacks after a divergence", lambda run: _last(run, "guard/rollbacks")),
        ("Updates skipped", lambda run: _last(run, "guard/skipped_updates")),
        ("Read retries, all ranks", lambda run: _sum_over_ranks(run, "retries")),
        ("Corrupt samples replaced", lambda run: _sum_over_ranks(run, "corrupt_samples")),
        ("Checkpoints kept", lambda run: _facts(run, lambda f: len(f.checkpoints))),
        ("Checkpoints quarantined", lambda run: _facts(run, lambda f: f.num_quarantined)),
        ("Records that MLflow lacks", lambda run: _facts(run, lambda f: len(f.unsent))),
    ]
    note = (
        "A driver that died or was interrupted was followed by one that resumed the run. A restart "
        "counts once its group of workers has run for 15 s."
    )
    return f"{_by_run(runs, rows)}\n{paragraph(note, mark='quiet')}"


def cost_table(runs: Sequence[RunData]) -> str:
    """Tell what the runs have used, with the cost where the job has a price."""
    rows: list[Row] = [
        ("GPU-hours", lambda run: _hours(run, "cost/gpu_hours")),
        ("CPU-hours", lambda run: _hours(run, "cost/cpu_hours")),
        ("Price", _price),
        ("Cost", _cost),
    ]
    return _by_run(runs, rows)


def data_table(runs: Sequence[RunData]) -> str:
    """Name the data sets."""
    rows: list[Row] = [
        ("Training", _training_sets),
        ("Images", _num_samples),
        ("Digest", _digest),
        ("Validation", lambda run: mask(str(run.job.values.get("data.validation") or NONE))),
    ]
    return _by_run(runs, rows)


def evaluation_table(runs: Sequence[RunData]) -> str:
    """Show the last evaluation of each run with its intervals; empty if there is none."""
    heads = ("run", "metric", "value", "95 % interval", "images", "real images", "after images")
    rows = []
    for run in runs:
        if run.facts is None or not run.facts.evaluations:
            continue
        last = run.facts.evaluations[-1]
        for each in last.measurements:
            ends, floor = each.interval, each.floor
            shown = "" if ends is None else f"{_short(ends.low)} to {_short(ends.high)}"
            full = "" if ends is None else f"{ends.low!r} to {ends.high!r}"
            rows.append(
                [
                    cell(run.name, mark="long"),
                    cell(f"{EVALUATION}{each.metric}", mark="value"),
                    cell(each.value),
                    cell(full, shown),
                    cell(each.n, f"{each.n:,}"),
                    cell("", "") if floor is None else cell(floor.mean),
                    cell(last.images_seen, f"{last.images_seen:,}"),
                ]
            )
    if not rows:
        return ""
    return table([(head, head) for head in heads], rows, name="last-evaluation")


def metrics_table(runs: Sequence[RunData]) -> str:
    """List all metrics with the values that were logged, also those that no plot shows."""
    heads = ("metric", "run", "points", "first", "last", "lowest", "highest", "last at")
    rows = []
    for name in sorted({name for run in runs for name in run.metrics}):
        for run in runs:
            if not (series := run.metrics.get(name)):
                continue
            values = list(series.values())
            numbers = [values[0], values[-1], min(values), max(values)]
            last = list(series)[-1]
            rows.append(
                [
                    cell(name, mark="value"),
                    cell(run.name, mark="long"),
                    cell(len(series), f"{len(series):,}"),
                    *(cell(float(number), _short(number)) for number in numbers),
                    cell(last, f"{last:,}"),
                ]
            )
    return table([(head, head) for head in heads], rows, name="metrics-of-all")


def differences_table(runs: Sequence[RunData]) -> str:
    """List the values in which the jobs differ; a sentence if there are none."""
    values = [{key: repr(value) for key, value in run.job.values.items()} for run in runs]
    keys = dict.fromkeys(key for found in values for key in found)
    rows: list[Row] = []
    for key in keys:
        if len({found.get(key) for found in values}) > 1:
            rows.append((key, lambda run, key=key: _value(run, key)))  # type: ignore[misc]
    if not rows:
        return paragraph("The jobs are the same.")
    return _by_run(runs, rows)


def _value(run: RunData, key: str) -> str:
    if key not in run.job.values:
        return NONE
    value = run.job.values[key]
    simple = value is None or isinstance(value, int | float | bool)
    return format_value_short(value) if simple else mask(str(value))


def _by_run(runs: Sequence[RunData], rows: Sequence[Row]) -> str:
    """Make a table with a row for each property and a column for each run."""
    heads = "".join(
        f'<th scope="col">{swatch(number)} {escape(run.name)}</th>'
        for number, run in enumerate(runs)
    )
    top = f"<thead><tr><td></td>{heads}</tr></thead>\n" if len(runs) > 1 else ""
    body = "\n".join(
        f'<tr><th scope="row">{escape(title)}</th>'
        f"{''.join(f'<td>{_lines(of(run))}</td>' for run in runs)}</tr>"
        for title, of in rows
    )
    return wide(f'<table class="byrun">\n{top}<tbody>\n{body}\n</tbody></table>')


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _short(value: float) -> str:
    return format_value_short(float(value))


def _images_seen(run: RunData) -> str:
    epochs = list(run.metrics.get("epoch", {}).values())
    return f"{run.images_seen:,}" + (f" ({epochs[-1]:.3g} epochs)" if epochs else "")


def _started(run: RunData) -> str:
    if run.history is None or run.history.start_ms is None:
        return NONE
    start = datetime.datetime.fromtimestamp(run.history.start_ms / 1000, datetime.UTC)
    return f"{start:%Y-%m-%d %H:%M} UTC"


def _duration(run: RunData) -> str:
    found = run.history
    if found is None or found.start_ms is None or found.end_ms is None:
        return NONE
    seconds = (found.end_ms - found.start_ms) / 1000
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}, from the start to the end"
    return f"{seconds:.0f} seconds, from the start to the end"


def _median(series: Series) -> str:
    values = list(series.values())
    return _short(statistics.median(values)) if values else NONE


def _data_wait(run: RunData) -> str:
    values = list(run.metrics.get("data/wait_fraction", {}).values())
    return f"{100 * statistics.fmean(values):.1f} % of the time" if values else NONE


def _used(run: RunData) -> str:
    return NONE if run.facts is None else run.facts.usage.format()


def _place(run: RunData) -> str:
    storage = run.address.storage
    return NONE if storage is None else f"{mask(storage.uri.rstrip('/'))}/{run.name}"


def _facts(run: RunData, of: Callable[..., int]) -> str:
    return NONE if run.facts is None else f"{of(run.facts):,}"


def _drivers(run: RunData) -> str:
    if run.facts is None or not run.facts.drivers:
        return NONE
    return f"{len(run.facts.drivers)}: {', '.join(run.facts.drivers)}"


def _restarts(run: RunData) -> str:
    return _facts(run, lambda facts: max(0, facts.num_groups - 1))


def _last(run: RunData, name: str) -> str:
    values = list(run.metrics.get(name, {}).values())
    return _short(values[-1]) if values else NONE


def _sum_over_ranks(run: RunData, kind: str) -> str:
    found = [
        max(series.values())
        for name, series in run.metrics.items()
        if name.startswith("data/rank_") and name.endswith(f"/{kind}")
    ]
    return _short(sum(found)) if found else NONE


def _hours(run: RunData, name: str) -> str:
    """Hours of the storage's records, which go on when nothing is logged; else the logged ones."""
    if run.facts is not None and run.facts.num_groups:
        used = run.facts.usage
        return f"{used.gpu_hours if name == 'cost/gpu_hours' else used.cpu_hours:.4g}"
    return _last(run, name)


def _price(run: RunData) -> str:
    price = run.job.price
    if price is None:
        return "none in the job"
    units: Mapping[str, float | None] = {"GPU-hour": price.gpu_hour, "CPU-hour": price.cpu_hour}
    shown = [f"{cost:g} {price.currency or ''}".rstrip() for cost in units.values() if cost]
    names = [name for name, cost in units.items() if cost]
    return ", ".join(f"{cost} per {name}" for cost, name in zip(shown, names, strict=True))


def _cost(run: RunData) -> str:
    if run.facts is not None and run.facts.usage.cost is not None:
        return run.facts.usage.format_cost()
    return _last(run, "cost/total")


def _training_sets(run: RunData) -> str:
    return "\n".join(mask(each) for each in run.job.training_sets) or NONE


def _num_samples(run: RunData) -> str:
    """Number of training images: the images seen in one epoch."""
    epochs = [(seen, epoch) for seen, epoch in run.metrics.get("epoch", {}).items() if epoch > 0]
    return f"{round(epochs[-1][0] / epochs[-1][1]):,}" if epochs else NONE


def _digest(run: RunData) -> str:
    if run.address.record is not None:
        return run.address.record.data_digest
    return NONE if run.history is None else run.history.tags.get("data.digest", NONE)
