"""Read what a run has logged: from MLflow, and from the spools that are sent to it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.config.paths import sqlite_path
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.redaction import mask
from orchestrator.tracking.client import artifact_errors, connect
from orchestrator.tracking.sample_grids import check_files
from orchestrator.tracking.sender import PICTURE_FILE
from orchestrator.tracking.spool import FORMAT, Record, parse_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Series: TypeAlias = Mapping[int, float]
"""Values of a metric by images seen, in that order; a value need not be finite."""
JOB = "job/resolved.yaml"


@dataclass(frozen=True)
class RunHistory:
    """What MLflow has of a run."""

    run_id: str
    name: str
    status: str
    start_ms: int | None
    end_ms: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    sets: tuple[str, ...]
    """Addresses of the training sets."""
    metrics: Mapping[str, Series]
    pictures: Mapping[str, Mapping[int, str]]
    """Artifact paths by series and images seen."""


def read_history(uri: str, run_id: str, timeout_s: int = 30) -> RunHistory:
    """Read the run ``run_id`` of the MLflow at the absolute ``uri``, without its pictures' bytes.

    Raises:
        UsageError: MLflow has no such run.
        EnvironmentProblem: MLflow or the storage of its files is out of reach.
    """
    _check_exists(uri)
    with connect(uri, timeout_s=timeout_s) as client:
        run = _get_run(client, uri, run_id)
        names = sorted(metric.key for metric in run.data.to_proto().metrics)
        metrics = {name: _series(client, run_id, name) for name in names}
        check_files(uri, run.info.artifact_uri)
        pictures: dict[str, dict[int, str]] = {}
        with artifact_errors(run.info.artifact_uri):
            for file in client.list_artifacts(run_id, "images"):
                found = PICTURE_FILE.fullmatch(file.path)
                if found is not None and found["ending"] == ".png":
                    series = pictures.setdefault(found["key"].replace("~", "/"), {})
                    series[int(found["step"])] = file.path
    return RunHistory(
        run_id,
        run.info.run_name or run_id,
        run.info.status,
        run.info.start_time,
        run.info.end_time,
        dict(run.data.params),
        dict(run.data.tags),
        _sets(run),
        metrics,
        {key: dict(sorted(series.items())) for key, series in pictures.items()},
    )


def read_run_names(uri: str, run_id: str) -> tuple[str, Mapping[str, str]]:
    """Return the name of a run and its params. Raises as ``read_history`` does."""
    _check_exists(uri)
    with connect(uri, timeout_s=30) as client:
        run = _get_run(client, uri, run_id)
    return run.info.run_name or run_id, dict(run.data.params)


def fetch_files(uri: str, run_id: str, paths: Iterable[str], folder: Path) -> dict[str, Path]:
    """Copy artifacts of a run into ``folder``; return where each is. Raises EnvironmentProblem."""
    wanted = list(paths)
    if not wanted:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    with connect(uri, timeout_s=30) as client, artifact_errors(uri):
        return {path: Path(client.download_artifacts(run_id, path, str(folder))) for path in wanted}


def read_spool(folder: Path) -> list[Record]:
    """Read the records in the spool ``folder``, sent or not, while another process writes to it.

    Changes nothing. Empty if there is no spool, or one of another format.
    """
    try:
        content = (folder / "records.jsonl").read_bytes()
    except OSError:
        return []
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    if not lines or f'"format": {FORMAT},'.encode() not in lines[0]:
        return []
    return [record for line in lines if (record := parse_line(line, folder)) is not None]


def _check_exists(uri: str) -> None:
    """Raise EnvironmentProblem if a database is not there: connecting would create it."""
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise EnvironmentProblem(
            f"there is no MLflow database at {database}; give the tracking URI of the run's job "
            "with --tracking-uri"
        )


def _get_run(client: "MlflowClient", uri: str, run_id: str) -> "Run":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.get_http_status_code() != 404:
            raise
        raise UsageError(
            f"MLflow at {mask(uri)} has no run {run_id}; give the tracking URI of the run's job "
            "with --tracking-uri"
        ) from error


def _series(client: "MlflowClient", run_id: str, name: str) -> Series:
    """Return the points of a metric; of several at one step, the last one that was logged."""
    points = client.get_metric_history(run_id, name)
    ordered = sorted(points, key=lambda point: (point.step, point.timestamp))
    return {int(point.step): float(point.value) for point in ordered}


def _sets(run: "Run") -> tuple[str, ...]:
    inputs = () if run.inputs is None else run.inputs.dataset_inputs
    found = []
    for each in inputs:
        try:
            source = json.loads(each.dataset.source)
            found.append(str(source["uri"]))
        except (ValueError, TypeError, KeyError):  # of another program
            found.append(str(each.dataset.name))
    return tuple(found)
