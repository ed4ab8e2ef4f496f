"""Report of a sweep, with the sample grids that its trials logged to MLflow."""

from pathlib import Path

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem
from orchestrator.sweeps.records import Sweep, rank_configs
from orchestrator.sweeps.report import write_report
from orchestrator.sweeps.store import SweepStore
from orchestrator.temporary_folder import temporary_folder
from orchestrator.tracking import fetch_grids

MAX_GRIDS = 16
"""Trials whose sample grids are fetched, the best ones."""


def build_report(store: SweepStore, destination: Path, *, grids: bool) -> Path:
    """Write the report of a sweep; return the path of its page.

    Args:
        grids: whether to fetch sample grids from MLflow. If MLflow is out of reach, the report is
            written without them.
    """
    sweep = store.load()
    with temporary_folder("the sample grids") as folder:
        fetched = _fetch_grids(store, sweep, folder) if grids else {}
        return write_report(sweep, destination, fetched)


def _fetch_grids(store: SweepStore, sweep: Sweep, folder: Path) -> dict[int, dict[int, Path]]:
    from orchestrator.config.load import load_text
    from orchestrator.runs.resolved_job import resolve_job

    record = store.read_record()
    job = resolve_job(load_text(record.text, Path(record.file_name), record.overrides)).job
    best_first = [number for config in rank_configs(sweep) for number in config.trials]
    trials = {trial.number: trial for trial in sweep.trials}
    runs = {n: trials[n].segments[-1].mlflow_run_id for n in best_first[:MAX_GRIDS]}
    try:
        fetched = fetch_grids(job.tracking.uri, {n: r for n, r in runs.items() if r}, folder)
    except EnvironmentProblem as error:
        log_info(f"the report has no sample grids: {error}")
        return {}
    if not fetched:
        log_info("the report has no sample grids: there are none in MLflow")
    return fetched
