"""What every worker of a run needs to know, and how it reaches its driver."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.console import ProgressReport
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.retry import Result
from orchestrator.runs import usage
from orchestrator.runs.checkpoints import Checkpoints, images_of
from orchestrator.runs.lease import Fence
from orchestrator.runs.outages import wait_out
from orchestrator.runs.record import RunRecord
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from orchestrator.training.interfaces import Stateful

ReportCallback = Callable[[ProgressReport], None]


class MetricsListener(Stateful, Protocol):
    """Receives what rank 0 logs at each step, before that step's checkpoint is saved.

    Its state is saved in the checkpoint and restored from it.
    """

    def __call__(self, report: ProgressReport) -> None:
        """Receive the points that were logged in one call."""


@dataclass(frozen=True)
class RunContext:
    """All that a worker needs to know about a run; it is sent to other machines."""

    name: str
    """Unique name of the run, and its folder in the storage."""
    job: Job = field(repr=False)
    """With absolute paths."""
    rendered: str
    """The job as YAML, without secrets."""
    run: tracking.RunRef
    data_digest: str
    """Of the training set."""
    metrics_listener: MetricsListener | None = field(default=None, repr=False)
    """A sweep judges its trials by what this receives."""
    fence: Fence | None = field(default=None, repr=False)
    """Refuses what a driver that was superseded, or its workers, would write."""
    timed_steps: int = 0
    """For `orchestrator scaling`: so many steps are timed, and nothing is logged or saved."""

    @property
    def record(self) -> RunRecord:
        """Record of the run for its storage."""
        run = self.run
        return RunRecord(self.name, self.job.name, run.run_id, run.experiment_id, self.data_digest)

    def storage(self) -> Storage:
        """Open the job's storage: once there is a driver, one that knows the run to be there."""
        return open_storage(self.job.storage) if self.fence is None else self.fence.storage

    def checkpoints(self) -> Checkpoints:
        """Open the run's checkpoints."""
        about = {"run": self.name, "job": self.job.name, "mlflow_run_id": self.run.run_id}
        folder = f"{self.name}/checkpoints"
        return Checkpoints(self.storage(), folder, self.rendered, about, self.check_fence)

    def check_fence(self) -> None:
        """Raise Superseded if another driver has taken over the run."""
        if self.fence is not None:
            self.fence.check()

    def wait_out(self, call: Callable[[], Result]) -> Result:
        """Return ``call()``, which uses the storage, repeated while that is out of reach."""
        return wait_out(call, self.job.data.retry_timeout_s)

    def images_saved(self) -> int:
        """Return the images seen at the newest checkpoint; 0 if there is none."""
        names = self.checkpoints().names()
        return images_of(names[-1]) if names else 0

    def usage(self) -> usage.Usage:
        """Sum up what the run has used so far."""
        found = usage.read_usage(self.storage(), self.name)
        return usage.sum_usage(found, self.job.cost)

    def check_storage(self) -> None:
        """Raise EnvironmentProblem if this process cannot see what the driver wrote."""
        if not open_storage(self.job.storage).exists(self.record.key):
            raise EnvironmentProblem(
                f"a worker on {socket.gethostname()} cannot see {mask(self.job.storage)}/"
                f"{self.record.key}, which the driver wrote; use a folder that all machines "
                "mount, or a bucket such as s3://bucket/prefix, as storage"
            )


@dataclass(frozen=True)
class WorkerCallbacks:
    """Connects a worker to the driver of its run."""

    on_report: ReportCallback
    """Called on rank 0 with the points of each log."""
    should_stop: Callable[[], bool] = lambda: False
    on_activity: Callable[[str], None] = lambda activity: None
    """As in Worker, like ``should_stop``."""
    on_saved: Callable[[], None] = lambda: None
    """Called after each commit of a checkpoint, in another thread of rank 0."""
