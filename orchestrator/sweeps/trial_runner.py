"""One training of a sweep, in the process that Ray Tune gives it."""

from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.console import ProgressReport
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import Diverged, OrchestratorError, Stopped, TryAgain
from orchestrator.runs.driver import (
    Launcher,
    create_run_context,
    launch_training,
    resume_run_context,
    run_lifecycle,
)
from orchestrator.runs.fork import fork_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.resolved_job import ResolvedJob
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.worker_setup import RunContext
from orchestrator.storage.base import NotFound
from orchestrator.sweeps.early_stopping import TrialDecision
from orchestrator.sweeps.metric_windows import Looks
from orchestrator.sweeps.records import Status, TrialSegment


@dataclass(frozen=True)
class TrialTask:
    """What a process needs to know of the training that it is to do."""

    number: int
    resolved: ResolvedJob = field(repr=False)
    """The job with the training's values."""
    segment: TrialSegment
    metrics: tuple[str, ...]
    report_every: int
    total_images: int
    images_seen: int
    """At its last look."""
    tags: dict[str, str]
    """For its MLflow run."""


class TrialReporter(Protocol):
    """Where a training tells how it goes."""

    def started(self, mlflow_run_id: str) -> None:
        """It begins, with this MLflow run."""

    def report_result(self, images_seen: int, values: tuple[float, ...]) -> None:
        """What it looks like."""

    def requested_action(self, images_seen: int) -> TrialDecision | None:
        """What is wanted of it, so far along."""


@dataclass(frozen=True)
class TrialEnd:
    """How a training's process ended."""

    status: Status
    reason: str = ""
    lost: bool = False
    """Whether another process may do better."""


def train_trial(
    task: TrialTask, desk: TrialReporter, stop: StopRequest, on_ray: Launcher | None
) -> TrialEnd:
    """Train until the end, or until the desk or ``stop`` ends it; a lost run is gone on with.

    Args:
        on_ray: how several workers train; None trains in this process.
    """
    decision = TrialDecision("continue")

    def show(report: ProgressReport) -> None:
        nonlocal decision
        said = desk.requested_action(report.images_seen)
        if said is not None and said.action != "continue" and not stop.requested:
            decision = said
            stop.request()

    try:
        setup, resumed = _setup(task)
        setup = replace(setup, metrics_listener=_ReportingWindow(task, desk))
        said = desk.requested_action(setup.images_saved()) if resumed else None
        if said is not None and said.action != "continue":
            return _end_by(said)
        start = None
        if task.segment.source_checkpoint is not None and not resumed:
            job = task.resolved.job
            source = f"{job.storage.rstrip('/')}/{task.segment.source_checkpoint}"
            start = fork_run(source, job, open_set(job.data.train).num_samples)
        with run_lifecycle(setup, stop, resumed=resumed, start=start.state if start else None):
            desk.started(setup.run.run_id)  # from here on its parent may go on
            launch_training(setup, show, stop, on_ray)
    except Stopped:
        if decision.action == "continue":
            return TrialEnd("paused", "its process was told to stop", lost=True)
        return _end_by(decision)
    except Diverged as error:
        return TrialEnd("diverged", str(error))
    except OrchestratorError as error:
        return TrialEnd("failed", str(error), lost=isinstance(error, TryAgain))
    return TrialEnd("finished")


def _end_by(decision: TrialDecision) -> TrialEnd:
    return TrialEnd("stopped" if decision.action == "stop" else "paused", decision.reason)


class _ReportingWindow(Looks):
    """Reports each intermediate result, from the process that is rank 0."""

    def __init__(self, task: TrialTask, desk: TrialReporter) -> None:
        super().__init__(task.metrics, task.report_every, task.total_images, task.images_seen)
        self._desk = desk

    def __call__(self, report: ProgressReport) -> None:
        for result in self.add(report.images_seen, report.points):
            self._desk.report_result(*result)


def _setup(task: TrialTask) -> tuple[RunContext, bool]:
    """The run, and whether it was begun by an earlier process."""
    digest = open_set(task.resolved.job.data.train).digest
    try:
        record = RunRecord.read(task.resolved.storage(), task.segment.run)
    except NotFound:
        name = task.segment.run.removeprefix("sweeps/").replace("/", "-")
        setup = create_run_context(task.resolved, digest, task.segment.run, task.tags, name)
        return setup, False
    return resume_run_context(task.resolved, digest, record), True
