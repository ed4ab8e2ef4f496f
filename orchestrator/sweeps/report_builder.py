"""The report of a sweep, with the sample grids that its trainings left in MLflow."""

import tempfile
from pathlib import Path

from orchestrator.console import say
from orchestrator.errors import EnvironmentProblem
from orchestrator.sweeps.records import Sweep, standings
from orchestrator.sweeps.report import write_report
from orchestrator.sweeps.store import SweepStore
from orchestrator.tracking import fetch_grids

MOST_GRIDS = 16
"""Trainings on the wall, the best ones."""


def explain(store: SweepStore, destination: Path, *, grids: bool) -> Path:
    """Write the report of a sweep; the page's path.

    Args:
        grids: whether to fetch the sample grids from MLflow; one out of reach only costs the wall.
    """
    sweep = store.sweep()
    with tempfile.TemporaryDirectory(prefix="sweep-report-") as folder:
        found = _grids(store, sweep, Path(folder)) if grids else {}
        return write_report(sweep, destination, found)


def _grids(store: SweepStore, sweep: Sweep, folder: Path) -> dict[int, dict[int, Path]]:
    from orchestrator.config.load import load_text
    from orchestrator.config.paths import resolve_places

    record = store.record()
    job = resolve_places(load_text(record.text, Path(record.file_name), record.overrides).job)
    wanted = [number for standing in standings(sweep) for number in standing.trials]
    trials = {trial.number: trial for trial in sweep.trials}
    runs = {n: trials[n].legs[-1].mlflow_run_id for n in wanted[:MOST_GRIDS]}
    try:
        fetched = fetch_grids(job.tracking.uri, {n: r for n, r in runs.items() if r}, folder)
    except EnvironmentProblem as error:
        say(f"the report has no sample grids: {error}")
        return {}
    if not fetched:
        say("the report has no sample grids, for there are none in MLflow")
    return fetched
