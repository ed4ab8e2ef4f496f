"""One MLflow run per run: params, files, metrics, images and status.

The driver starts and finishes the MLflow run. Rank 0 has a Tracker, which writes to a local spool;
a thread sends the spool to MLflow, so that training never waits for a server. A point or an image
is sent only if MLflow does not have its series up to that step yet, so steps that are trained again
after a restart are logged once.
"""

from orchestrator.tracking.client import RunRef, connect, uri_option
from orchestrator.tracking.mlflow_runs import (
    DRIVER_ID,
    Status,
    check_tracking,
    finish_run,
    log_summary,
    mark_killed,
    reopen_run,
    run_url,
    start_run,
)
from orchestrator.tracking.sample_grids import fetch_grids
from orchestrator.tracking.tracker import Tracker, replay

__all__ = [
    "DRIVER_ID",
    "RunRef",
    "Status",
    "Tracker",
    "check_tracking",
    "connect",
    "fetch_grids",
    "finish_run",
    "log_summary",
    "mark_killed",
    "reopen_run",
    "replay",
    "run_url",
    "start_run",
    "uri_option",
]
