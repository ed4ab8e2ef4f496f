"""The run of a job: started and finished by the driver."""

import importlib.metadata
import json
import os
import secrets
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from orchestrator.config.paths import sqlite_path
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.tracking.client import RunRef, artifacts, connect, keep_trying, warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

    from orchestrator.config.job import Job

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's limits: params in one request, characters of a data set's digest.
MAX_PARAMS = 100
MAX_DIGEST = 36

DRIVER_TAG = "driver"
THIS_DRIVER = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
"""Names this process on the runs that it drives, as no other process ever does."""


def start_run(
    job: "Job",
    *,
    rendered: str,
    text: str,
    file_name: str,
    digest: str | None,
    run_name: str,
    tags: Mapping[str, str] | None = None,
) -> RunRef:
    """A new run that holds all that is known before the training; for the driver.

    An MLflow out of reach is waited for, for ``tracking.retry_timeout_s``.

    Args:
        job: with absolute places.
        rendered: the resolved job as YAML, without values from the environment. Params come from
            here.
        text: the job file as given.
        digest: names the training set's content, if it has been packed.
        run_name: no other run has it.
        tags: more of them.

    Raises:
        EnvironmentProblem: MLflow was out of reach for too long, or it refuses, or takes no
            files. A run that exists by then is FAILED.
    """
    from orchestrator.config.flatten import flat

    uri, retry_timeout_s = job.tracking.uri, job.tracking.retry_timeout_s
    params = {name: _param(value) for name, value in flat(rendered).items()}
    known = {"mlflow.source.name": file_name, "job": job.name, DRIVER_TAG: THIS_DRIVER}
    all_tags = {**_versions(), **_git_tags(), **(tags or {}), **known}
    found: RunRef | None = None
    num_attempts = 0

    def attempt() -> RunRef:
        nonlocal found, num_attempts
        num_attempts += 1
        with connect(uri) as client:
            experiment_id = _experiment(client, job.tracking.experiment or job.name, uri)
            # An earlier attempt may have made the run and not have heard of it.
            info = _find_run(client, experiment_id, run_name) if num_attempts > 1 else None
            if info is None:
                info = client.create_run(experiment_id, tags=all_tags, run_name=run_name).info
            found = RunRef(uri, experiment_id, info.run_id, retry_timeout_s)
            _log_params(client, info.run_id, params)
            with artifacts(info.artifact_uri):
                client.log_text(info.run_id, mask(rendered), "job/resolved.yaml")
                client.log_text(info.run_id, mask(text), f"job/{Path(file_name).name}")
            if digest is not None:
                _log_data_set(client, info.run_id, mask(job.data.train), digest)
        return found

    try:
        return keep_trying(attempt, "starting the MLflow run", retry_timeout_s)
    except BaseException:
        # Nobody else knows of the run: it would seem to run for ever.
        if found is not None:
            with suppress(EnvironmentProblem), connect(uri) as client:
                client.set_terminated(found.run_id, status="FAILED")
        raise


def reopen_run(run: RunRef) -> None:
    """Say that a run goes on which had ended, or whose driver was lost; this process drives it.

    Raises EnvironmentProblem if MLflow is out of reach for too long or does not know the run.
    """
    from mlflow.exceptions import MlflowException

    def attempt() -> None:
        with connect(run.tracking_uri) as client:
            try:
                # In this order, see `kill_lost_run`.
                client.set_tag(run.run_id, DRIVER_TAG, THIS_DRIVER)
                client.update_run(run.run_id, status="RUNNING")
            except MlflowException as error:
                if error.get_http_status_code() != 404:
                    raise
                raise EnvironmentProblem(
                    f"MLflow at {mask(run.tracking_uri)} has no run {run.run_id} to go on with: "
                    f"{error.message}; give the tracking.uri that it began with, or start a new "
                    "run without --resume"
                ) from error

    keep_trying(attempt, "going on with the MLflow run", run.retry_timeout_s)


def summarise(
    run: RunRef, metrics: Mapping[str, float], tags: Mapping[str, str], step: int = 0
) -> None:
    """Write what came of a run as a whole; what it said before is replaced.

    Args:
        step: that of the newest points with these names, if there are any.

    Raises EnvironmentProblem if MLflow is out of reach for too long.
    """
    from mlflow.entities import Metric, RunTag

    def attempt() -> None:
        now = time.time_ns() // 1_000_000
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        with connect(run.tracking_uri) as client:
            named = [RunTag(name, value) for name, value in tags.items()]
            client.log_batch(run.run_id, metrics=points, tags=named)

    keep_trying(attempt, "writing what came of the run", run.retry_timeout_s)


def finish_run(run: RunRef, status: Status) -> None:
    """Write how the run ended, for which an MLflow that is gone is waited for, and then warned of.

    Who kills a run does not want to wait: its monitor goes on trying then.
    """

    def attempt() -> None:
        with connect(run.tracking_uri) as client:
            client.set_terminated(run.run_id, status=status)

    retry_timeout_s = 0 if status == "KILLED" else run.retry_timeout_s
    try:
        keep_trying(attempt, f"writing that the run is {status}", retry_timeout_s)
    except EnvironmentProblem as error:
        shown = mask(run.tracking_uri)
        code = f"MlflowClient({shown!r}).set_terminated({run.run_id!r}, {status!r})"
        there = "" if shown == run.tracking_uri else ", with the user and password in place of ***"
        warn(
            f"run {run.run_id} ended as {status}, which could not be written down: {error}. To "
            f"write it later{there}:\n"
            f"python -c {shlex.quote('from mlflow import MlflowClient; ' + code)}"
        )


def kill_lost_run(run: RunRef, driver: str) -> None:
    """Give a run whose ``driver`` is no more the status KILLED, unless it ended or goes on.

    Raises EnvironmentProblem if MLflow is out of reach for too long.
    """

    database = sqlite_path(run.tracking_uri)

    def attempt() -> None:
        if database is not None and not database.exists():
            return  # deleted meanwhile, and not to be made again
        with connect(run.tracking_uri) as client:
            stored = client.get_run(run.run_id)
            if stored.info.status != "RUNNING" or stored.data.tags.get(DRIVER_TAG) != driver:
                return
            client.set_terminated(run.run_id, status="KILLED")
            # A new driver writes its name and then the status. Where the name came between the
            # look and the word above, the status may have too.
            if client.get_run(run.run_id).data.tags.get(DRIVER_TAG) != driver:
                client.update_run(run.run_id, status="RUNNING")

    keep_trying(attempt, "writing that the run was killed", run.retry_timeout_s)


def run_url(run: RunRef) -> str:
    """Where a person looks at the run: an address, or the command that starts the page."""
    shown = mask(run.tracking_uri)
    if not shown.startswith(("http://", "https://")):
        return f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
    return f"{shown.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """Id of the experiment; for SQLite its artifacts go beside the database, not to the cwd."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        database = sqlite_path(uri)
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another job may have created it in this moment.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage != "active":
        raise EnvironmentProblem(
            f"the experiment {name!r} was deleted in MLflow: set tracking.experiment to another "
            f"name, or bring it back with `mlflow experiments restore -x {found.experiment_id}`"
        )
    return str(found.experiment_id)


def _find_run(client: "MlflowClient", experiment_id: str, run_name: str) -> "RunInfo | None":
    found = client.search_runs([experiment_id], f"attributes.run_name = '{run_name}'")
    return found[0].info if found else None


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    all_params = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(all_params), MAX_PARAMS):
        client.log_batch(run_id, params=all_params[start : start + MAX_PARAMS])


def _log_data_set(client: "MlflowClient", run_id: str, address: str, digest: str) -> None:
    """What mlflow.data.MetaDataset would log, without looking for the data or its reader."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme, separator, _ = address.partition("://")
    data_set = Dataset(
        name=address.rstrip("/"),
        digest=digest[:MAX_DIGEST],
        source_type=scheme if separator else "local",
        source=json.dumps({"uri": address}),
    )
    context = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, [DatasetInput(data_set, [context])])
    client.set_tag(run_id, "data.digest", digest)


def _param(value: Any) -> str:
    """A value as text; passwords are replaced."""
    return mask(value if isinstance(value, str) else json.dumps(value))


def _versions() -> dict[str, str]:
    tags = {}
    for package in ("torch", "ray", "orchestrator"):
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout that is not installed
    return tags


def _git_tags() -> dict[str, str]:
    """The commit of the current folder and whether files differ from it; nothing outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.changed": str(changed).lower()}


def _git(*arguments: str) -> str:
    finished = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=5
    )
    return finished.stdout.strip()
