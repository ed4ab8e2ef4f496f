"""What each worker of a run assembles around the loop: data, checkpoints and the tracker."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.console import Report
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.image_grid import tile
from orchestrator.redaction import mask
from orchestrator.runs import usage
from orchestrator.runs.async_checkpoints import UploadedCheckpoints
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.record import RunRecord
from orchestrator.storage.open import open_storage
from orchestrator.training.interfaces import NullRecorder, Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.profile_run import NullCheckpointStore, time_steps

ReportCallback = Callable[[Report], None]
FAILED_CLOSE_S = 60.0


class Observer(Protocol):
    """Told by rank 0 of each moment, before that moment is saved."""

    def __call__(self, report: Report) -> None:
        """Take the points of a moment."""

    def state(self) -> dict[str, Any]:
        """As a Recorder's."""

    def load(self, state: Mapping[str, Any]) -> None:
        """As a Recorder's; it comes before the first moment."""


@dataclass(frozen=True)
class RunContext:
    """All that a worker needs to know of a run; it travels to other machines."""

    name: str
    """Name of the run, unique; its folder in the storage."""
    job: Job = field(repr=False)
    """With absolute places."""
    rendered: str
    """The job as YAML, without secrets."""
    run: tracking.RunRef
    data_digest: str
    """Of the training set."""
    observer: Observer | None = field(default=None, repr=False)
    """For a sweep, which judges the training by it."""
    timed_steps: int = 0
    """For `orchestrator scaling`: so many steps are timed, and nothing is recorded or saved."""

    @property
    def record(self) -> RunRecord:
        """What the storage is to know of the run."""
        run = self.run
        return RunRecord(self.name, self.job.name, run.run_id, run.experiment_id, self.data_digest)

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        about = {"run": self.name, "job": self.job.name, "mlflow_run_id": self.run.run_id}
        storage = open_storage(self.job.storage)
        return Checkpoints(storage, f"{self.name}/checkpoints", self.rendered, about)

    def images_saved(self) -> int:
        """Images that the newest checkpoint has seen; 0 without one."""
        names = self.checkpoints().names()
        return int(names[-1].partition("-")[0]) if names else 0

    def usage_meter(self, num_workers: int) -> usage.Meter:
        """Counts from now on what ``num_workers`` workers use."""
        storage, job = open_storage(self.job.storage), self.job
        return usage.Meter(storage, self.name, job.cluster, num_workers, job.cost)

    def usage(self) -> usage.Usage:
        """What the run has used so far."""
        found = usage.recorded(open_storage(self.job.storage), self.name)
        return usage.total(found, self.job.cost)

    def check_storage(self) -> None:
        """Raise EnvironmentProblem if this process does not see what the driver has put there."""
        if not open_storage(self.job.storage).exists(self.record.key):
            raise EnvironmentProblem(
                f"a worker on {socket.gethostname()} does not see {mask(self.job.storage)}/"
                f"{self.record.key}, which the driver wrote; use a folder that all machines "
                "mount, or s3://bucket/prefix, as storage"
            )


@dataclass(frozen=True)
class WorkerCallbacks:
    """What ties a worker to who drives the run."""

    report: ReportCallback
    """Told of each moment that has points; by rank 0."""
    should_stop: Callable[[], bool] = lambda: False
    doing: Callable[[str], None] = lambda what: None
    """See Worker, as for ``should_stop``."""
    saved: Callable[[], None] = lambda: None
    """Called after each commit of a checkpoint, by another thread of rank 0."""


def train_worker(
    setup: RunContext, ties: WorkerCallbacks, *, rank: int, world_size: int, device: torch.device
) -> Outcome:
    """One worker of a run: the data, the checkpoints and, on rank 0, the tracker, around the loop.

    Every rank calls it; with more than one the process group must exist.
    """
    stream = ShardStream(setup.job, rank, world_size, pin_memory=device.type == "cuda")
    if setup.timed_steps:
        worker = Worker(
            NullRecorder(), NullCheckpointStore(), device, rank, world_size, ties.should_stop, ties.doing
        )
        return time_steps(setup.job, stream, worker, setup.timed_steps)
    setup.check_storage()
    usage = setup.usage_meter(world_size) if rank == 0 else None
    total = setup.job.train.total_images(stream.num_samples)
    recording = _recording(setup, total, ties.report, usage) if usage else nullcontext(NullRecorder())
    with recording as recorder:
        checkpoints = UploadedCheckpoints(
            setup.checkpoints(), setup.job.data.retry_timeout_s, ties.saved
        )
        worker = Worker(
            recorder, checkpoints, device, rank, world_size, ties.should_stop, ties.doing
        )
        try:
            return train(setup.job, stream, worker)
        finally:
            # `train` has raised it, or what ended it matters more.
            with suppress(OrchestratorError):
                checkpoints.flush()


class _Recorder:
    """Sends what the training tells to MLflow, to a sweep and to the progress display."""

    def __init__(
        self,
        tracker: tracking.Tracker,
        total: int,
        report: ReportCallback,
        observer: Observer | None,
        usage: usage.Meter,
    ) -> None:
        self.tracker, self.total, self.report = tracker, total, report
        self.observer, self.usage = observer, usage
        self.latest: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        values = {**values, **self.usage.all().metrics()}
        self.tracker.metrics(values, images_seen)
        self.latest.update(values)
        report = Report(images_seen, self.total, dict(self.latest), dict(values))
        if self.observer is not None:
            self.observer(report)
        self.report(report)

    def grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        self.tracker.picture(key, tile(rows), images_seen)

    def text(self, name: str, text: str, images_seen: int) -> None:
        self.tracker.text(name, text, images_seen)

    def state(self) -> dict[str, Any]:
        return self.observer.state() if self.observer is not None else {}

    def load(self, state: Mapping[str, Any]) -> None:
        if self.observer is not None:
            self.observer.load(state)


@contextmanager
def _recording(setup: RunContext, total: int, report: ReportCallback, usage: usage.Meter) -> Iterator[_Recorder]:
    spool = Path(tempfile.gettempdir(), f"orchestrator-{os.getuid()}", "spool", setup.name)
    tracker = tracking.Tracker(setup.run, spool)
    with usage.writing():
        try:
            yield _Recorder(tracker, total, report, setup.observer, usage)
        except BaseException:
            # The training may begin again, and sends from the same spool if that is on this
            # machine.
            tracker.close(min(FAILED_CLOSE_S, setup.run.retry_timeout_s))
            raise
        tracker.close()
