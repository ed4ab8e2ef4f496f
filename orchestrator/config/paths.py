"""Resolve the relative paths of a job, alike for the driver and for every worker."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from orchestrator.addresses import split_address, system_folder_problem
from orchestrator.errors import UsageError
from orchestrator.extractor_name import parse_extractor
from orchestrator.home_folder import expand_home

if TYPE_CHECKING:
    from orchestrator.config.job import Job
    from orchestrator.config.register_section import RegisterSection

RAY_UPLOADS = "working_dir_files"
"""Folder in which Ray unpacks an uploaded working directory; Ray deletes it after the job."""
SQLITE = "sqlite:///"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc")


def base_folder() -> Path:
    """Return the folder that relative paths start from.

    This is the current folder, except in an uploaded working directory, which Ray deletes after
    the job: there it is ~/orchestrator on the machine of the driver.
    """
    here = Path.cwd()
    return expand_home("~/orchestrator") if RAY_UPLOADS in here.parts else here


def to_absolute(path: str, base: Path) -> str:
    """Return ``path`` as an absolute path; URIs are returned unchanged."""
    return path if "://" in path else str(base / expand_home(path))


def to_absolute_extractor(text: str, base: Path) -> str:
    """Return the name of an extractor with the absolute path of its file, if it has one."""
    name = parse_extractor(text)
    if name is None or not name.file:
        return text
    return str(name._replace(file=to_absolute(name.file, base)))


def tracking_uri_problem(uri: str) -> str | None:
    """Say what is wrong with the MLflow tracking ``uri``, and what to use; None if it is usable."""
    # The messages do not quote the URI, as it may contain a password.
    advice = f"use http://HOST:PORT for an MLflow server, or {SQLITE}mlflow.db for a local file"
    scheme, separator, rest = uri.partition("://")
    if scheme == "file" or uri.startswith("file:"):
        return (
            "is a folder of files, which MLflow no longer writes; use sqlite:///mlflow.db, and "
            "move the old runs there with `mlflow migrate-filestore`"
        )
    if not separator:
        return f"is neither a server nor a database; {advice}"
    kind = scheme.partition("+")[0]
    if kind not in _SCHEMES:
        return f"starts with {scheme}://, which MLflow does not know; {advice}"
    if kind == "sqlite":
        path = rest.removeprefix("/").partition("?")[0]
        if not rest.startswith("/") or path in ("", ":memory:"):
            return f"is not a database file that several processes can open; use {SQLITE}mlflow.db"
        if problem := system_folder_problem(unquote(path)):
            return f"{problem}, such as {SQLITE}mlflow.db"
    problem = _host_problem(uri)
    return problem and f"{problem}{advice}"


def _host_problem(uri: str) -> str | None:
    """Say what is wrong with the host of the address of a server; None if nothing is."""
    try:
        if uri.startswith("http"):
            split_address(uri)
        else:
            # A database may have no host; SQLAlchemy takes what follows the first : as a number.
            place = urlsplit(uri).netloc.rpartition("@")[2]
            if not re.fullmatch(r"(\[[^]]*\]|[^:]*)(:\d*)?", place):
                raise ValueError
    except ValueError:  # its text may quote a part of the password
        return (
            "has no valid host and port; write special characters of a password as %XX, such as "
            "%5B for [, or "
        )
    return None


def to_absolute_tracking_uri(uri: str, base: Path) -> str:
    """Return the MLflow tracking ``uri`` with an absolute path; raise UsageError if not valid."""
    if (problem := tracking_uri_problem(uri)) is not None:
        raise UsageError(f"tracking.uri {problem}")
    if not uri.startswith("sqlite"):
        return uri
    path, _, query = uri.partition(":///")[2].partition("?")
    return sqlite_uri(base / expand_home(unquote(path))) + (f"?{query}" if query else "")


def sqlite_uri(path: Path) -> str:
    """Return the tracking URI of the SQLite file at the absolute ``path``.

    SQLAlchemy decodes %XX and takes ? for the start of options, so these are encoded. For
    ``sqlite:///`` MLflow would create the folder of the encoded name too; not with a driver's name.
    """
    encoded = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", str(path)).replace("?", "%3F")
    return (SQLITE if encoded == str(path) else "sqlite+pysqlite:///") + encoded


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an absolute tracking ``uri``, or None if it is not SQLite."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(unquote(found[1])) if found else None


def resolve_paths(job: "Job") -> "Job":
    """Return the job with absolute paths for its data, storage, tracking and extractor.

    Raises UsageError if ``tracking.uri`` is not the address of an MLflow, or a home is missing.
    """
    base = base_folder()
    train, validation, cache = job.data.train, job.data.validation, job.data.cache
    if isinstance(train, str):
        train = to_absolute(train, base)
    else:
        train = [s.model_copy(update={"path": to_absolute(s.path, base)}) for s in train]
    if cache is not None:
        cache = cache.model_copy(update={"folder": to_absolute(cache.folder, base)})
    validation = validation and to_absolute(validation, base)
    data = {"train": train, "validation": validation, "cache": cache}
    tracking = {"uri": to_absolute_tracking_uri(job.tracking.uri, base)}
    evaluate = job.evaluate
    if evaluate is not None:
        extractor = to_absolute_extractor(evaluate.extractor, base)
        evaluate = evaluate.model_copy(update={"extractor": extractor})
    return job.model_copy(
        update={
            "data": job.data.model_copy(update=data),
            "tracking": job.tracking.model_copy(update=tracking),
            "evaluate": evaluate,
            "storage": to_absolute(job.storage, base),
            "register_as": _resolve_extractor(job.register_as, base),
        }
    )


def _resolve_extractor(register: "RegisterSection | None", base: Path) -> "RegisterSection | None":
    if register is None or (gate := register.promote) is None:
        return register
    extractor = to_absolute_extractor(gate.extractor, base)
    changed = gate.model_copy(update={"extractor": extractor})
    return register.model_copy(update={"promote": changed})
