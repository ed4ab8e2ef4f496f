"""How to reach MLflow: with little patience, quietly, and with errors that say what to do."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.errors import EnvironmentProblem
from orchestrator.tracking.uri import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class RunRef:
    """Where a run is. It can be sent to other processes on this machine, to others for a server."""

    tracking_uri: str = field(repr=False)  # it may hold a password
    experiment_id: str
    run_id: str


@contextmanager
def patience(*, retries: int, timeout_s: int) -> Iterator[None]:
    """How long MLflow's HTTP requests go on within the block, unless the user's environment says.

    MLflow's own settings block a caller of a dead server for 4 minutes. They are settings of the
    process, for MLflow reads them from the environment.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries,
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": 1,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": timeout_s,
    }
    added = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def client_of(uri: str) -> "MlflowClient":
    """A client of the MLflow at ``uri``, which keeps quiet and reports to nobody else."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow would copy a uv.lock of the current folder, registry addresses included, into models.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    from mlflow import MlflowClient

    # The variable is read when MLflow is imported, which may have happened earlier.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def connect(uri: str, *, retries: int = 1, timeout_s: int = 5) -> Iterator["MlflowClient"]:
    """A client of the MLflow at the absolute ``uri``, for the block.

    Raises:
        EnvironmentProblem: MLflow does not answer or refuses, then or later in the block.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with patience(retries=retries, timeout_s=timeout_s):
        try:
            client = client_of(uri)
            client.search_experiments(max_results=1)
            yield client
        # ImportError: the driver of a database that MLflow does not bring along.
        except (MlflowException, requests.RequestException, SQLAlchemyError, ImportError) as error:
            raise EnvironmentProblem(
                f"MLflow at {redacted(uri)} cannot be used: {first_line(error)}. Start the server "
                "or correct tracking.uri; sqlite:///mlflow.db needs no server"
            ) from error


def first_line(error: Exception) -> str:
    """What ``error`` says, in one line and without passwords."""
    lines = redacted(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def warn(message: str) -> None:
    """Say on stderr what a person should know and what stops nothing."""
    sys.stderr.write(f"tracking: {message}\n")
