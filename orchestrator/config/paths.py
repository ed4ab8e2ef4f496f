"""Where a job's relative places are: one folder for the driver and for every worker."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.job import Job

RAY_UPLOADS = "working_dir_files"
"""Folder in which Ray unpacks an uploaded working directory; it is deleted after the job."""
SQLITE = "sqlite:///"


def base_folder() -> Path:
    """The folder that relative places start from.

    That is the current one, but in an uploaded working directory, which Ray deletes after the job
    with everything in it: there it is ~/orchestrator of the machine that runs the driver.
    """
    here = Path.cwd()
    return Path.home() / "orchestrator" if RAY_UPLOADS in here.parts else here


def absolute(place: str, base: Path) -> str:
    """``place`` as an absolute folder; URIs are left alone."""
    return place if "://" in place else str(base / Path(place).expanduser())


def absolute_tracking_uri(uri: str, base: Path) -> str:
    """``uri`` of an MLflow so that it means the same in every folder of this machine.

    Raises:
        UsageError: it is neither a server nor a database that several processes can open.
    """
    # The messages do not quote the address: it may hold a password.
    if "://" not in uri:
        raise UsageError(
            "tracking.uri is neither a server nor a database: use http://HOST:PORT for an MLflow "
            f"server, or {SQLITE}mlflow.db for a file that needs no server"
        )
    if not uri.startswith("sqlite"):
        return uri
    path, _, query = uri.removeprefix(SQLITE).partition("?")
    if not uri.startswith(SQLITE) or not path or path == ":memory:":
        raise UsageError(
            "tracking.uri names no database file that several processes can open: use "
            f"{SQLITE}mlflow.db"
        )
    return f"{SQLITE}{base / Path(path).expanduser()}" + (f"?{query}" if query else "")


def sqlite_path(uri: str) -> Path | None:
    """The database file of an absolute tracking ``uri``, or None when it is not SQLite."""
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def resolve_places(job: "Job") -> "Job":
    """The job with absolute places for its data, its storage and its tracking.

    Raises:
        UsageError: `tracking.uri` is no address of an MLflow.
    """
    base = base_folder()
    validation, cache = job.data.validation, job.data.cache
    if cache is not None:
        cache = cache.model_copy(update={"folder": absolute(cache.folder, base)})
    data = job.data.model_copy(
        update={
            "train": absolute(job.data.train, base),
            "validation": validation and absolute(validation, base),
            "cache": cache,
        }
    )
    uri = absolute_tracking_uri(job.tracking.uri, base)
    tracking = job.tracking.model_copy(update={"uri": uri})
    storage = absolute(job.storage, base)
    return job.model_copy(update={"data": data, "tracking": tracking, "storage": storage})
