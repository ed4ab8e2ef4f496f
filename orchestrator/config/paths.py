"""Resolve the relative paths of a job, alike for the driver and for every worker."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.job import Job

RAY_UPLOADS = "working_dir_files"
"""Folder in which Ray unpacks an uploaded working directory; Ray deletes it after the job."""
SQLITE = "sqlite:///"


def base_folder() -> Path:
    """Return the folder that relative paths start from.

    This is the current folder, except in an uploaded working directory, which Ray deletes after
    the job: there it is ~/orchestrator on the machine of the driver.
    """
    here = Path.cwd()
    return Path.home() / "orchestrator" if RAY_UPLOADS in here.parts else here


def to_absolute(path: str, base: Path) -> str:
    """Return ``path`` as an absolute path; URIs are returned unchanged."""
    return path if "://" in path else str(base / Path(path).expanduser())


def to_absolute_tracking_uri(uri: str, base: Path) -> str:
    """Return the MLflow tracking ``uri`` with an absolute path; raise UsageError if not valid."""
    # The messages do not quote the URI, as it may contain a password.
    if "://" not in uri:
        raise UsageError(
            "tracking.uri is neither a server nor a database; use http://HOST:PORT for an MLflow "
            f"server, or {SQLITE}mlflow.db for a file that needs no server"
        )
    if not uri.startswith("sqlite"):
        return uri
    path, _, query = uri.removeprefix(SQLITE).partition("?")
    if not uri.startswith(SQLITE) or not path or path == ":memory:":
        raise UsageError(
            "tracking.uri is not a database file that several processes can open; use "
            f"{SQLITE}mlflow.db"
        )
    return f"{SQLITE}{base / Path(path).expanduser()}" + (f"?{query}" if query else "")


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an absolute tracking ``uri``, or None if it is not SQLite."""
    return Path(uri[len(SQLITE) :].partition("?")[0]) if uri.startswith(SQLITE) else None


def resolve_paths(job: "Job") -> "Job":
    """Return the job with absolute paths for its data, storage and tracking."""
    base = base_folder()
    train, validation, cache = job.data.train, job.data.validation, job.data.cache
    if cache is not None:
        cache = cache.model_copy(update={"folder": to_absolute(cache.folder, base)})
    validation = validation and to_absolute(validation, base)
    data = {"train": to_absolute(train, base), "validation": validation, "cache": cache}
    tracking = {"uri": to_absolute_tracking_uri(job.tracking.uri, base)}
    return job.model_copy(
        update={
            "data": job.data.model_copy(update=data),
            "tracking": job.tracking.model_copy(update=tracking),
            "storage": to_absolute(job.storage, base),
        }
    )
