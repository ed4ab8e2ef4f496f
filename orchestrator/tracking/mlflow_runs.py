"""Start, resume and finish an MLflow run, from the driver."""

import importlib.metadata
import itertools
import json
import os
import secrets
import shlex
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from orchestrator.config.paths import sqlite_path
from orchestrator.distribution import installed_version
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.tracking.client import (
    RunRef,
    artifact_errors,
    connect,
    now_ms,
    retry_mlflow,
    secret_hint,
    warn,
)
from orchestrator.tracking.places import check_not_moved

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, RunInfo

    from orchestrator.config.data_section import DataSection
    from orchestrator.config.job import Job

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

MAX_DIGEST = 36
"""MLflow's limit for the characters of a dataset's digest."""
DRIVER_TAG = "driver"
DRIVER_ID = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
"""Unique id of this process, a tag of the runs that it drives."""


def start_run(
    job: "Job",
    *,
    rendered: str,
    text: str,
    file_name: str,
    digest: str,
    run_name: str,
    tags: Mapping[str, str] | None = None,
) -> RunRef:
    """Create a run with everything known before the training: params, files, dataset, tags.

    Retries for ``tracking.retry_timeout_s`` if MLflow is out of reach.

    Args:
        job: with absolute paths.
        rendered: the resolved job as YAML, without values from the environment; gives the params.
        text: the job file as given.
        digest: of the training set.
        run_name: must be unique.

    Raises:
        EnvironmentProblem: MLflow was out of reach for too long, refuses, or cannot store files. A
            run that exists by then is FAILED.
    """
    from mlflow.entities import Param

    from orchestrator.config.flatten import flatten

    uri, retry_timeout_s = job.tracking.uri, job.tracking.retry_timeout_s
    params = [Param(name, mask(_to_text(value))) for name, value in flatten(rendered).items()]
    files = {"job/resolved.yaml": rendered, f"job/{Path(file_name).name}": text}
    known = {"mlflow.source.name": file_name, "job": job.name, DRIVER_TAG: DRIVER_ID}
    all_tags = {**_versions(), **_git_tags(), **(tags or {}), **known}
    found: RunRef | None = None
    attempts = itertools.count()

    def attempt() -> RunRef:
        nonlocal found
        with connect(uri) as client:
            experiment = job.tracking.experiment or job.name
            check_not_moved(uri, experiment)
            experiment_id = _experiment(client, experiment, uri)
            # An earlier attempt may have created the run and lost the answer.
            info = _find_run(client, experiment_id, run_name) if next(attempts) else None
            if info is None:
                info = client.create_run(experiment_id, tags=all_tags, run_name=run_name).info
            found = RunRef(uri, experiment_id, info.run_id, retry_timeout_s)
            client.log_batch(info.run_id, params=params)
            with artifact_errors(info.artifact_uri):
                for name, content in files.items():
                    client.log_text(info.run_id, mask(content), name)
            _log_datasets(client, info.run_id, job.data, digest)
        return found

    try:
        return retry_mlflow(attempt, "starting the MLflow run", retry_timeout_s)
    except BaseException:
        # Nobody else knows the run: it would stay RUNNING for ever.
        if found is not None:
            with suppress(EnvironmentProblem), connect(uri) as client:
                client.set_terminated(found.run_id, status="FAILED")
        raise


def reopen_run(run: RunRef) -> None:
    """Set a run that ended or was orphaned to RUNNING, with this process as its driver.

    Raises EnvironmentProblem if MLflow is out of reach for too long or does not know the run.
    """
    from mlflow.exceptions import MlflowException

    def attempt() -> None:
        with connect(run.tracking_uri) as client:
            check_not_moved(run.tracking_uri, run.experiment_id, "experiment_id")
            try:
                # In this order, see `mark_killed`.
                client.set_tag(run.run_id, DRIVER_TAG, DRIVER_ID)
                client.update_run(run.run_id, status="RUNNING")
            except MlflowException as error:
                if error.get_http_status_code() != 404:
                    raise
                raise EnvironmentProblem(
                    f"MLflow at {mask(run.tracking_uri)} has no run {run.run_id} to resume: "
                    f"{error.message}; use the tracking.uri that it was started with, or start a "
                    "new run without --resume"
                ) from error

    retry_mlflow(attempt, "resuming the MLflow run", run.retry_timeout_s)


def log_summary(
    run: RunRef, metrics: Mapping[str, float], tags: Mapping[str, str], step: int = 0
) -> None:
    """Log final metrics and tags of a run; they replace earlier ones.

    ``step`` is that of the newest points of these metrics, if there are any. Raises
    EnvironmentProblem if MLflow is out of reach for too long.
    """
    from mlflow.entities import Metric, RunTag

    def attempt() -> None:
        points = [Metric(name, value, now_ms(), step) for name, value in metrics.items()]
        run_tags = [RunTag(name, value) for name, value in tags.items()]
        with connect(run.tracking_uri) as client:
            client.log_batch(run.run_id, metrics=points, tags=run_tags)

    retry_mlflow(attempt, "writing the run's summary", run.retry_timeout_s)


def finish_run(run: RunRef, status: Status) -> None:
    """Write how the run ended; warn if MLflow stays out of reach.

    KILLED is tried once, because whoever kills a run does not want to wait; the watchdog retries.
    """

    def attempt() -> None:
        with connect(run.tracking_uri) as client:
            client.set_terminated(run.run_id, status=status)

    retry_timeout_s = 0 if status == "KILLED" else run.retry_timeout_s
    try:
        retry_mlflow(attempt, f"writing the run's status {status}", retry_timeout_s)
    except EnvironmentProblem as error:
        code = (
            f"MlflowClient({mask(run.tracking_uri)!r}).set_terminated({run.run_id!r}, {status!r})"
        )
        warn(
            f"run {run.run_id} ended as {status}, which could not be written: {error}. To write it "
            f"later{secret_hint(run.tracking_uri)}:\n"
            f"python -c {shlex.quote('from mlflow import MlflowClient; ' + code)}"
        )


def mark_killed(run: RunRef, driver_id: str) -> None:
    """Set a run to KILLED, unless it ended or another driver than ``driver_id`` resumed it.

    Raises EnvironmentProblem if MLflow is out of reach for too long.
    """
    database = sqlite_path(run.tracking_uri)

    def attempt() -> None:
        if database is not None and not database.exists():
            return  # deleted meanwhile; connecting would create it again
        with connect(run.tracking_uri) as client:
            stored = client.get_run(run.run_id)
            if stored.info.status != "RUNNING" or stored.data.tags.get(DRIVER_TAG) != driver_id:
                return
            client.set_terminated(run.run_id, status="KILLED")
            # A new driver writes its id and then the status. If the id came between the two calls
            # above, the status may have come too.
            if client.get_run(run.run_id).data.tags.get(DRIVER_TAG) != driver_id:
                client.update_run(run.run_id, status="RUNNING")

    retry_mlflow(attempt, "writing the run's status KILLED", run.retry_timeout_s)


def run_url(run: RunRef) -> str:
    """Return the address of the run's page, or the command that starts MLflow's web server."""
    shown = mask(run.tracking_uri)
    if not shown.startswith(("http://", "https://")):
        return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
    return f"{shown.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """Return the experiment's id; with SQLite, artifacts go beside the database, not to the cwd."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        database = sqlite_path(uri)
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another job may have created it at the same moment.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    check_not_deleted(found, uri)
    return str(found.experiment_id)


def check_not_deleted(experiment: "Experiment", uri: str) -> None:
    """Raise EnvironmentProblem if ``experiment`` is in MLflow's trash."""
    if experiment.lifecycle_stage != "active":
        raise EnvironmentProblem(
            f"the experiment {experiment.name!r} was deleted in MLflow: set tracking.experiment to "
            f"another name, or restore it{secret_hint(uri)} with `MLFLOW_TRACKING_URI="
            f"{shlex.quote(mask(uri))} mlflow experiments restore -x {experiment.experiment_id}`"
        )


def check_tracking(uri: str, experiment: str | None, *, timeout_s: int = 5) -> None:
    """Check what a new run in ``experiment`` needs of MLflow, without writing anything.

    A SQLite file that does not exist yet is not created. Raises EnvironmentProblem.
    """
    database = sqlite_path(uri)
    with suppress(OSError):  # if its folder is not accessible, connecting says why
        if database is not None and not database.exists():
            return
    with connect(uri, retries=0, timeout_s=timeout_s) as client:
        if experiment is None:
            return
        check_not_moved(uri, experiment)
        if (found := client.get_experiment_by_name(experiment)) is not None:
            check_not_deleted(found, uri)


def _find_run(client: "MlflowClient", experiment_id: str, run_name: str) -> "RunInfo | None":
    found = client.search_runs([experiment_id], f"attributes.run_name = '{run_name}'")
    return found[0].info if found else None


def _log_datasets(client: "MlflowClient", run_id: str, data: "DataSection", digest: str) -> None:
    """Log what mlflow.data.MetaDataset would for each training set, without access to the data.

    ``digest`` is that of all sets together.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for each in data.training_sets:
        address = mask(each.path)
        scheme, separator, _ = address.partition("://")
        dataset = Dataset(
            name=address.rstrip("/"),
            digest=digest[:MAX_DIGEST],
            source_type=scheme if separator else "local",
            source=json.dumps({"uri": address}),
        )
        tags = {"mlflow.data.context": "training"}
        if len(data.training_sets) > 1:
            tags["weight"] = f"{each.weight:g}"
        inputs.append(DatasetInput(dataset, [InputTag(*tag) for tag in tags.items()]))
    client.log_inputs(run_id, inputs)
    client.set_tag(run_id, "data.digest", digest)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _versions() -> dict[str, str]:
    version = installed_version()
    tags = {} if version is None else {"version.orchestrator": version}
    for package in ("torch", "ray"):
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tags


def _git_tags() -> dict[str, str]:
    """Tag the commit of the current folder and whether files differ from it; none outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(changed).lower()}


def _git(*arguments: str) -> str:
    return subprocess.check_output(
        ["git", *arguments], stderr=subprocess.DEVNULL, text=True, timeout=5
    ).strip()
