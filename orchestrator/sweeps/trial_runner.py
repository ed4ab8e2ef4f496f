"""Run one trial of a sweep, in the process that Ray Tune provides."""

from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.console import ProgressReport
from orchestrator.data.loading.compatibility import open_training_set
from orchestrator.data.loading.training_set import open_training_sets
from orchestrator.errors import Diverged, OrchestratorError, Stopped
from orchestrator.runs.driver import (
    Launcher,
    create_run_context,
    launch_training,
    resume_run_context,
)
from orchestrator.runs.fork import fork_run
from orchestrator.runs.lifecycle import run_lifecycle
from orchestrator.runs.record import RunRecord
from orchestrator.runs.resolved_job import ResolvedJob
from orchestrator.runs.run_context import RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.storage.base import NotFound
from orchestrator.sweeps.early_stopping import CONTINUE, TrialDecision
from orchestrator.sweeps.metric_windows import MetricWindow
from orchestrator.sweeps.records import Status, TrialSegment
from orchestrator.training.collapse import COLLAPSED


@dataclass(frozen=True)
class TrialTask:
    """Everything that a process needs to run a trial."""

    number: int
    resolved: ResolvedJob = field(repr=False)
    """Job with the trial's values."""
    segment: TrialSegment
    metrics: tuple[str, ...]
    report_every: int
    total_images: int
    images_seen: int
    """At its last intermediate result."""
    tags: dict[str, str]
    """Of its MLflow run."""


class TrialReporter(Protocol):
    """Reports the progress of a trial and asks what it must do."""

    def report_start(self, mlflow_run_id: str) -> None:
        """Report that the trial has started with this MLflow run."""

    def report_result(self, images_seen: int, values: tuple[float, ...]) -> None:
        """Report an intermediate result; return once it is recorded."""

    def requested_action(self, images_seen: int) -> TrialDecision | None:
        """Ask what the trial must do after ``images_seen``; None if nothing."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial's process ended."""

    status: Status
    reason: str = ""
    retryable: bool = False
    """Whether another process may continue the trial."""


HAS_COLLAPSED = TrialEnd(
    "diverged",
    "collapsed: at its end samples/diversity is below 0.1, so its samples are nearly one picture, "
    "and its metrics count for nothing",
)


def train_trial(
    task: TrialTask, reporter: TrialReporter, stop: StopRequest, launcher: Launcher | None
) -> TrialEnd:
    """Run a trial until it ends, or until the reporter or ``stop`` ends it.

    A run that an earlier process has started is resumed. Without a ``launcher``, which starts
    several workers, the trial trains in this process.
    """
    decision, collapsed = CONTINUE, False

    def show(report: ProgressReport) -> None:
        nonlocal decision, collapsed
        collapsed = report.metrics.get(COLLAPSED, 0) > 0
        requested = reporter.requested_action(report.images_seen)
        if requested is not None and requested.action != "continue" and not stop.requested:
            decision = requested
            stop.request()

    try:
        context, resumed = _make_context(task)
        window = _ReportingWindow(task, reporter)
        context = replace(context, metrics_listener=window)
        requested = reporter.requested_action(context.images_saved()) if resumed else None
        if requested is not None and requested.action != "continue":
            return _end_by(requested)
        start, job = None, task.resolved.job
        if task.segment.source_checkpoint is not None and not resumed:
            source = f"{job.storage.rstrip('/')}/{task.segment.source_checkpoint}"
            start = fork_run(source, job, open_training_sets(job.data).num_samples).state
        with run_lifecycle(context, stop, resumed=resumed, start=start) as context:
            reporter.report_start(context.run.run_id)  # from here on its parent may resume
            launch_training(context, show, stop, launcher)
    except Stopped:
        if decision == CONTINUE:
            return TrialEnd("paused", "its process was asked to stop", retryable=True)
        return HAS_COLLAPSED if collapsed and decision.action == "stop" else _end_by(decision)
    except Diverged as error:
        return TrialEnd("diverged", str(error))
    except OrchestratorError as error:
        return TrialEnd("failed", str(error), retryable=error.retry)
    return HAS_COLLAPSED if collapsed or window.is_collapsed else TrialEnd("finished")


def _end_by(decision: TrialDecision) -> TrialEnd:
    return TrialEnd("stopped" if decision.action == "stop" else "paused", decision.reason)


class _ReportingWindow(MetricWindow):
    """Metric window that reports its results; only rank 0 has one."""

    def __init__(self, task: TrialTask, reporter: TrialReporter) -> None:
        super().__init__(task.metrics, task.report_every, task.total_images, task.images_seen)
        self._reporter = reporter

    def __call__(self, report: ProgressReport) -> None:
        for result in self.add(report.images_seen, report.points):
            self._reporter.report_result(*result)


def _make_context(task: TrialTask) -> tuple[RunContext, bool]:
    """Create or resume the trial's run; also return whether it is resumed."""
    digest = open_training_set(task.resolved.job).digest
    try:
        record = RunRecord.read(task.resolved.storage(), task.segment.run)
    except NotFound:
        name = task.segment.run.removeprefix("sweeps/").replace("/", "-")
        context = create_run_context(task.resolved, digest, task.segment.run, task.tags, name)
        return context, False
    return resume_run_context(task.resolved, digest, record), True
