"""One training of a sweep, in the process that Ray Tune gives it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.console import Report
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import Diverged, OrchestratorError, Stopped, TryAgain
from orchestrator.runs.driver import Launcher, carrying_out, found_run, new_run, train_with
from orchestrator.runs.fork import forked
from orchestrator.runs.record import RunRecord
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.worker_setup import Setup
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.early_stopping import Verdict
from orchestrator.sweeps.metric_windows import Looks
from orchestrator.sweeps.records import Leg, Status


@dataclass(frozen=True)
class Task:
    """What a process needs to know of the training that it is to do."""

    number: int
    loaded: LoadedJob = field(repr=False)
    """The job with the training's values."""
    job: Job = field(repr=False)
    """The same with absolute places."""
    leg: Leg
    metrics: tuple[str, ...]
    report_every: int
    total_images: int
    images_seen: int
    """At its last look."""
    tags: dict[str, str]
    """For its MLflow run."""


class Desk(Protocol):
    """Where a training tells how it goes."""

    def started(self, mlflow_run_id: str) -> None:
        """It begins, with this MLflow run."""

    def look(self, images_seen: int, values: tuple[float, ...]) -> None:
        """What it looks like."""

    def wish(self, images_seen: int) -> Verdict | None:
        """What is wanted of it, so far along."""


@dataclass(frozen=True)
class End:
    """How a training's process ended."""

    status: Status
    why: str = ""
    lost: bool = False
    """Whether another process may do better."""


def train_trial(task: Task, desk: Desk, stop: StopRequest, on_ray: Launcher | None) -> End:
    """Train until the end, or until the desk or ``stop`` ends it; a lost run is gone on with.

    Args:
        on_ray: how several workers train; None trains in this process.
    """
    verdict = Verdict("go on")

    def show(report: Report) -> None:
        nonlocal verdict
        said = desk.wish(report.images_seen)
        if said is not None and said.action != "go on" and not stop.asked:
            verdict = said
            stop.ask()

    try:
        setup, going_on = _setup(task)
        setup = replace(setup, observer=_Observer(task, desk))
        said = desk.wish(setup.images_saved()) if going_on else None
        if said is not None and said.action != "go on":
            return _end_by(said)
        start = None
        if task.leg.source is not None and not going_on:
            source = f"{task.job.storage.rstrip('/')}/{task.leg.source}"
            start = forked(source, task.job, open_set(task.job.data.train).num_samples)
        with carrying_out(setup, stop, going_on=going_on, start=start.state if start else None):
            desk.started(setup.run.run_id)  # from here on its parent may go on
            train_with(setup, show, stop, on_ray)
    except Stopped:
        if verdict.action == "go on":
            return End("paused", "its process was told to stop", lost=True)
        return _end_by(verdict)
    except Diverged as error:
        return End("diverged", str(error))
    except OrchestratorError as error:
        return End("failed", str(error), lost=isinstance(error, TryAgain))
    return End("finished")


def _end_by(verdict: Verdict) -> End:
    return End("stopped" if verdict.action == "stop" else "paused", verdict.why)


class _Observer:
    """Tells the desk of each look, from the process that is rank 0."""

    def __init__(self, task: Task, desk: Desk) -> None:
        self._looks = Looks(task.metrics, task.report_every, task.total_images, task.images_seen)
        self._desk = desk

    def __call__(self, report: Report) -> None:
        for look in self._looks.add(report.images_seen, report.points):
            self._desk.look(*look)

    def state(self) -> dict[str, Any]:
        return self._looks.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self._looks.load(state)


def _setup(task: Task) -> tuple[Setup, bool]:
    """The run, and whether it was begun by an earlier process."""
    digest = open_set(task.job.data.train).digest
    storage = open_storage(task.job.storage)
    try:
        record = RunRecord.read(storage, task.leg.run)
    except NotFound:
        name = task.leg.run.removeprefix("sweeps/").replace("/", "-")
        setup = new_run(task.loaded, task.job, digest, task.leg.run, task.tags, name)
        return setup, False
    return found_run(task.loaded, task.job, digest, record), True
