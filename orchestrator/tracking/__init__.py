"""One MLflow run per job: params, files, metrics, pictures and how it ended.

The driver starts and finishes the run. The training's rank 0 has a Tracker, which writes to a
local spool; a thread sends the spool to MLflow, so that training never waits for a server. A
point or a picture is sent only if MLflow does not hold that series up to that step yet, so what
is trained again after a restart is written once.
"""

from orchestrator.tracking.client import RunRef, connect
from orchestrator.tracking.mlflow_runs import (
    THIS_DRIVER,
    Status,
    finish_run,
    kill_lost_run,
    reopen_run,
    run_url,
    start_run,
    summarise,
)
from orchestrator.tracking.sample_grids import fetch_grids
from orchestrator.tracking.tracker import Tracker, replay

__all__ = [
    "THIS_DRIVER",
    "RunRef",
    "Status",
    "Tracker",
    "connect",
    "fetch_grids",
    "finish_run",
    "kill_lost_run",
    "reopen_run",
    "replay",
    "run_url",
    "start_run",
    "summarise",
]
