"""How to reach MLflow: with little patience, quietly, and with errors that say what to do."""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.config.paths import sqlite_path
from orchestrator.console import say
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 10.0

# What the clients of artifact stores raise; they are not imported for the sake of that.
_STORES = ("boto3", "botocore", "google", "azure")
_TRY_LATER = (408, 429)
# What no waiting mends: an address that is none, a module or a folder that is not there.
_MISTAKES = (
    ImportError,
    ValueError,
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


@dataclass(frozen=True)
class RunRef:
    """Where a run is. It can be sent to other processes on this machine, to others for a server."""

    tracking_uri: str = field(repr=False)  # it may hold a password
    experiment_id: str
    run_id: str
    retry_timeout_s: float = 300
    """How long an MLflow that is gone is waited for, by the driver at the start and by all at the
    end."""


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
    # Each attempt that fails would be a line on the terminal; the last error says it all.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with _one_creator(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _one_creator(uri: str) -> Iterator[None]:
    """For a SQLite file, the block in which MLflow creates its tables, one process at a time.

    MLflow lets two processes both find an empty file; the second one's migrations fail.

    Raises sqlite3.Error if the file cannot be opened: MLflow would try that for minutes.
    """
    if (path := sqlite_path(uri)) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The folder is locked and not a file beside the database, which nobody could safely delete.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folders
            fcntl.flock(folder, fcntl.LOCK_EX)
        with closing(sqlite3.connect(path, timeout=30)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
        yield
    finally:
        os.close(folder)


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
        except (
            MlflowException,
            requests.RequestException,
            SQLAlchemyError,
            sqlite3.Error,
            ImportError,
        ) as error:
            raise EnvironmentProblem(
                f"MLflow at {mask(uri)} cannot be used: {first_line(error)}. Start the server "
                "or correct tracking.uri; sqlite:///mlflow.db needs no server"
            ) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"MLflow at {mask(uri)} cannot be used: {first_line(error)}. Make that place "
                "writable, or set tracking.uri to another one"
            ) from error


@contextmanager
def artifacts(place: str) -> Iterator[None]:
    """For calls, in a block of `connect`, that write or read files at MLflow's URI ``place``.

    Raises:
        EnvironmentProblem: ``place`` cannot be written or read, then or later in the block.
    """
    import requests

    try:
        yield
    except requests.RequestException:
        raise  # it is the server that is gone, of which `connect` tells
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _STORES:
            raise
        raise EnvironmentProblem(
            f"MLflow's files at {mask(place)} cannot be written or read: {first_line(error)}. Make "
            "that place writable (a bucket needs credentials, such as AWS_ACCESS_KEY_ID), or set "
            "tracking.uri or tracking.experiment to one whose files go elsewhere"
        ) from error


def keep_trying(attempt: Callable[[], T], what: str, retry_timeout_s: float) -> T:
    """``attempt()``, which may be called again while MLflow is out of reach.

    Args:
        attempt: it must be able to go on where an earlier call of it failed.
        what: says to a person what waits.
        retry_timeout_s: no attempt begins later than this after the first one that failed.

    Raises:
        EnvironmentProblem: MLflow refuses, or it was out of reach for too long.
    """
    pause_s = FIRST_PAUSE_S
    deadline: float | None = None
    while True:
        try:
            return attempt()
        except EnvironmentProblem as error:
            if not _may_pass(error):
                raise
            first = deadline is None
            deadline = time.monotonic() + retry_timeout_s if deadline is None else deadline
            if time.monotonic() + pause_s > deadline:
                raise
            if first:
                say(f"{what} waits for up to {retry_timeout_s:.0f} s: {error}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _may_pass(error: EnvironmentProblem) -> bool:
    """Whether waiting may help: not where an answer or a file says that it will stay so."""
    from mlflow.exceptions import InvalidUrlException, MlflowException

    cause = error.__cause__
    if cause is None or isinstance(cause, (InvalidUrlException, *_MISTAKES)):
        return False
    if isinstance(cause, sqlite3.Error) or "(sqlite3." in str(cause):
        return "locked" in str(cause)
    if isinstance(cause, MlflowException):
        status = cause.get_http_status_code()
    else:
        status = _http_status(getattr(cause, "response", None))
    return status in _TRY_LATER or not 400 <= status < 500


def _http_status(response: Any) -> int:
    """Of what `requests` or boto3 tell of an answer; 0 where there was none."""
    if isinstance(response, Mapping):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return int(getattr(response, "status_code", 0))


def first_line(error: Exception) -> str:
    """What ``error`` says, in one line and without passwords."""
    lines = mask(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def warn(message: str) -> None:
    """Log what a person should know and what stops nothing: a Ray worker's driver shows it."""
    logger.warning("tracking: %s", message)
