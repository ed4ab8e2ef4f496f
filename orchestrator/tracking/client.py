"""Connect to MLflow with short timeouts, without its log output, and with errors that help."""

import fcntl
import logging
import os
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.paths import base_folder, sqlite_path, to_absolute_tracking_uri
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.redaction import mask
from orchestrator.retry import Result, retry
from orchestrator.tracking.explain import explain
from orchestrator.tracking.refusals import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 10.0
SQLITE_TIMEOUT_S = 5.0
"""Longest wait for the lock of a SQLite file; who may wait longer tries again."""

LOCK_TIMEOUT_S = 30.0
"""Longest wait while another process creates the tables in a SQLite file, which takes seconds."""

# Packages whose errors are those of an artifact store; they are not imported just for that.
_STORE_PACKAGES = ("boto3", "botocore", "google", "azure")
DATABASE_ATTEMPTS = 4
"""MLflow's own attempts to open a database: 0.1, 0.3 and 0.7 s apart, instead of 15 in 27 min."""


class MlflowProblem(EnvironmentProblem):
    """MLflow does not answer or refuses."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether the same request may work later."""


@dataclass(frozen=True)
class RunRef:
    """Address of a run in MLflow.

    Other processes on this machine can use it; those on other machines only if MLflow is a server.
    """

    tracking_uri: str = field(repr=False)  # it may hold a password
    experiment_id: str
    run_id: str
    retry_timeout_s: float = 300
    """Limits the retries of the driver at the start, and of every process at the end."""


@contextmanager
def limit_http_retries(*, retries: int, timeout_s: int) -> Iterator[None]:
    """Limit MLflow's HTTP requests within the block, unless the user's environment sets limits.

    With MLflow's defaults a request to a dead server blocks for 4 minutes. The limits hold for the
    whole process, because MLflow reads them from the environment.
    """
    limits = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries,
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": 1,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": timeout_s,
    }
    added = {name: str(value) for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def create_client(uri: str) -> "MlflowClient":
    """Create a client of the MLflow at ``uri``, without log output and without telemetry."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow would copy a uv.lock of the current folder, registry addresses included, into models.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    from mlflow import MlflowClient

    # MLflow reads the variable when it is imported, which may have happened earlier.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # It logs tracebacks of errors that `connect` explains.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith("http"):
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS
        os.environ.setdefault("PGCONNECT_TIMEOUT", "5")  # libpq would wait for minutes
    # Each failed attempt would be a line on the terminal; the last error is enough.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with _lock_creation(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _lock_creation(uri: str) -> Iterator[None]:
    """Let one process at a time create the tables in a SQLite file.

    If two processes both find an empty file, MLflow's migrations fail in the second one. Raises
    sqlite3.Error if the file cannot be opened; MLflow would retry that for minutes.
    """
    if (path := sqlite_path(uri)) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Lock the folder instead of a lock file, which nobody could delete safely.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(folder, path.parent)
        with closing(sqlite3.connect(path, timeout=SQLITE_TIMEOUT_S)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
        yield
    finally:
        os.close(folder)


def _lock(descriptor: int, folder: Path) -> None:
    """Lock the folder open as ``descriptor``; sqlite3.Error if another process keeps the lock."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise sqlite3.OperationalError(f"{folder} is locked") from None
            time.sleep(0.1)
        except OSError:  # NFS cannot lock folders
            return
        else:
            return


@contextmanager
def connect(uri: str, *, retries: int = 1, timeout_s: int = 5) -> Iterator["MlflowClient"]:
    """Connect to the MLflow at the absolute ``uri`` for the block.

    Raises EnvironmentProblem if MLflow does not answer or refuses, now or later in the block.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    # ImportError: the driver of a database that is not installed with MLflow.
    unusable = (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error, ImportError)
    with limit_http_retries(retries=retries, timeout_s=timeout_s):
        try:
            client = _create_checked_client(uri)
            yield client
        except (*unusable, OSError) as error:
            found = explain(uri, error)
            raise MlflowProblem(
                f"MLflow at {mask(uri)} {found.problem}; {found.advice}", may_pass=found.may_pass
            ) from error


def _create_checked_client(uri: str) -> "MlflowClient":
    """Create a client and make a request; raise MlflowProblem if one of MLflow's settings is wrong.

    MLflow reads a setting, such as MLFLOW_HTTP_REQUEST_TIMEOUT, when it needs it.
    """
    try:
        client = create_client(uri)
        client.search_experiments(max_results=1)
    except ValueError as error:
        variable = re.search(r"\bMLFLOW_[A-Z_]+", str(error))
        if variable is None:
            raise
        message = f"{first_line(error)}; correct or unset {variable[0]}"
        raise MlflowProblem(message, may_pass=False) from error
    return client


@contextmanager
def artifact_errors(uri: str) -> Iterator[None]:
    """Turn errors of the artifact store at ``uri`` into EnvironmentProblem, within `connect`."""
    from requests import RequestException

    try:
        yield
    except RequestException:
        raise  # the server is out of reach: `connect` handles it
    except Exception as error:
        package = type(error).__module__.split(".")[0]
        if not isinstance(error, (OSError, ImportError)) and package not in _STORE_PACKAGES:
            raise
        found = explain(uri, error)
        advice = (
            found.advice
            if isinstance(error, ModuleNotFoundError)
            else "make that location writable (a bucket needs credentials, such as "
            "AWS_ACCESS_KEY_ID)"
        )
        raise MlflowProblem(
            f"MLflow's files at {mask(uri)} cannot be written or read: {first_line(error)}; "
            f"{advice}, or set tracking.uri or tracking.experiment to one whose files are stored "
            "elsewhere",
            may_pass=found.may_pass,
        ) from error


def retry_mlflow(call: Callable[[], Result], what: str, retry_timeout_s: float) -> Result:
    """Return ``call()``, repeated while MLflow is out of reach.

    Args:
        call: must be able to continue where an earlier call failed.
        what: names the action in the log.
        retry_timeout_s: no attempt starts later than this after the first failure.

    Raises:
        EnvironmentProblem: MLflow refuses, or it was out of reach for too long.
    """
    return retry(
        call,
        is_transient=lambda error: isinstance(error, MlflowProblem) and error.may_pass,
        timeout_s=retry_timeout_s,
        first_pause_s=1.0,
        longest_pause_s=LONGEST_PAUSE_S,
        on_first_failure=lambda error: log_info(
            f"{what}: retrying for up to {retry_timeout_s:.0f} s: {error}"
        ),
    )


def secret_hint(uri: str) -> str:
    """Explain the ``***`` of a command that shows the masked ``uri``; empty if it has none."""
    return "" if mask(uri) == uri else ", with the user and password in place of ***"


def uri_option(uri: str) -> str:
    """Return the option of a printed command that finds the MLflow at the absolute ``uri``.

    Empty if the command finds it by itself: from MLFLOW_TRACKING_URI, or mlflow.db in this folder.
    """
    default = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    with suppress(UsageError):  # the variable may be wrong if the job has its own address
        if uri == to_absolute_tracking_uri(default, base_folder()):
            return ""
    return f" --tracking-uri {shlex.quote(mask(uri))}"


def now_ms() -> int:
    """Return the time as MLflow's timestamps have it."""
    return time.time_ns() // 1_000_000


def warn(message: str) -> None:
    """Log a warning; that of a Ray worker appears at the driver."""
    logger.warning("tracking: %s", message)
