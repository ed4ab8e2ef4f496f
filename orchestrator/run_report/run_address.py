"""Find a run by what a user calls it."""

import re
from contextlib import suppress
from dataclasses import dataclass, field

from orchestrator.config.paths import base_folder, to_absolute_tracking_uri
from orchestrator.errors import OrchestratorError
from orchestrator.run_report.stored_job import StoredJob, expand
from orchestrator.runs.record import RunRecord, read_job
from orchestrator.runs.replay import is_possible_name, unknown_run
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage
from orchestrator.tracking.run_history import read_run_names

DEFAULT_URI = "sqlite:///mlflow.db"
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunAddress:
    """Where a run is."""

    name: str
    mlflow_run_id: str
    tracking_uri: str = field(repr=False)
    """Absolute; it may hold a password."""
    storage: Storage | None
    """None if only MLflow knows the run."""
    record: RunRecord | None


def find_run(given: str, storage: str, tracking_uri: str | None) -> RunAddress:
    """Find the run called ``given``.

    Args:
        given: name of a run in ``storage``, STORAGE/RUN, or the id of an MLflow run.
        storage: URI of the storage of runs that are given by their name.
        tracking_uri: of the MLflow of the run; None for that of its job.

    Raises:
        UsageError: there is no such run.
        DamagedRecord: its record or its job is damaged.
        EnvironmentProblem: MLflow or the storage is out of reach.
    """
    name, root = given.rstrip("/"), storage
    if _MLFLOW_ID.fullmatch(name):
        return _by_id(name, storage, tracking_uri)
    opened = open_storage(root)
    if "/" in name and not (is_possible_name(name) and opened.exists(f"{name}/run.json")):
        root, _, name = name.rpartition("/")
        opened = open_storage(root or "/")
    if not is_possible_name(name):
        raise unknown_run(name, opened)
    try:
        record = RunRecord.read(opened, name)
    except NotFound:
        raise unknown_run(name, opened) from None
    uri = tracking_uri or _uri_of_job(opened, name)
    return RunAddress(name, record.mlflow_run_id, _absolute(uri), opened, record)


def _uri_of_job(storage: Storage, name: str) -> str:
    with suppress(NotFound):  # a run that began a moment ago
        return StoredJob(read_job(storage, name)).place("tracking.uri") or DEFAULT_URI
    return DEFAULT_URI


def _absolute(uri: str) -> str:
    return to_absolute_tracking_uri(uri, base_folder())


def _by_id(run_id: str, storage: str, tracking_uri: str | None) -> RunAddress:
    """Find an MLflow run; its storage is that of its job, or ``storage``."""
    uri = _absolute(tracking_uri or DEFAULT_URI)
    name, params = read_run_names(uri, run_id)
    for place in (expand(params.get("storage", "")), storage):
        with suppress(OrchestratorError):  # its storage may be gone, or on another machine
            opened = open_storage(place or storage)
            record = RunRecord.read(opened, name)
            if record.mlflow_run_id == run_id:
                return RunAddress(name, run_id, uri, opened, record)
    return RunAddress(name, run_id, uri, None, None)
