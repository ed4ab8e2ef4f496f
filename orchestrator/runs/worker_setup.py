"""Assembles data, checkpoints and tracker around the training loop, on each worker of a run."""

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.console import ProgressReport
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.image_grid import tile
from orchestrator.redaction import mask
from orchestrator.retry import Result
from orchestrator.runs import usage
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.lease import Fence
from orchestrator.runs.outages import wait_out
from orchestrator.runs.record import RunRecord
from orchestrator.runs.replay import replay_command, spool_folder
from orchestrator.runs.unsent import UnsentRecords
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from orchestrator.training.interfaces import NullRecorder, Stateful, Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.profile_run import NullCheckpointStore, time_steps

logger = logging.getLogger(__name__)

ReportCallback = Callable[[ProgressReport], None]
QUIET_S = 61.0
"""A request to MLflow is given up after two attempts of 30 s and a pause of 1 s. A driver waits so
long for those of one before it that may be alive, and only then asks MLflow what it has."""
FAILED_CLOSE_S = 60.0
"""Timeout for sending the last metrics of a run that has failed."""


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
        return int(names[-1].partition("-")[0]) if names else 0

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


def train_worker(
    context: RunContext,
    callbacks: WorkerCallbacks,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> Outcome:
    """Train as one worker of a run; rank 0 also logs to the tracker.

    Every rank calls it; with several the process group must exist.
    """
    job = context.job
    os.environ.update(job.variables())
    stream = ShardStream(job, rank, world_size, pin_memory=device.type == "cuda")
    worker = Worker(
        NullRecorder(),
        NullCheckpointStore(),
        device,
        rank,
        world_size,
        callbacks.should_stop,
        callbacks.on_activity,
    )
    if context.timed_steps:
        return time_steps(job, stream, worker, context.timed_steps)
    context.check_storage()
    checkpoints = AsyncCheckpointStore(
        context.checkpoints(),
        job.data.retry_timeout_s,
        callbacks.on_saved,
        keep_every=job.register_as is not None and job.register_as.best is not None,
    )
    worker = replace(worker, checkpoints=checkpoints)
    with _recording(context, worker, checkpoints, stream.num_samples, callbacks) as worker:
        try:
            return train(job, stream, worker)
        finally:
            # Either `train` has raised its error already, or the present error matters more.
            with suppress(OrchestratorError):
                checkpoints.flush()


def own_spool(name: str, fence: Fence | None) -> Path:
    """Return the folder for the unsent records of a driver, with those that earlier ones left here.

    They are copied, because an earlier driver may only be suspended and go on writing to its files.
    """
    folder = spool_folder(name)
    if fence is None:
        return folder
    own = folder.with_name(f"{folder.name}.{fence.term}")
    for term in reversed(range(fence.term)):
        earlier = folder.with_name(f"{folder.name}.{term}")
        with suppress(OSError):  # if the disk is full, they stay where they are
            if earlier.exists() and not own.exists():
                copy = own.with_name(f"{own.name}.new")
                shutil.copytree(earlier, copy, dirs_exist_ok=True).rename(own)
            shutil.rmtree(earlier)
    return own


def _quiet_s(context: RunContext) -> float:
    """Return how long requests of an earlier driver to an MLflow server may still be under way."""
    may_live = context.fence is not None and context.fence.predecessor_may_live
    return QUIET_S if may_live and context.run.tracking_uri.startswith("http") else 0.0


@contextmanager
def _recording(
    context: RunContext,
    worker: Worker,
    checkpoints: AsyncCheckpointStore,
    num_samples: int,
    callbacks: WorkerCallbacks,
) -> Iterator[Worker]:
    """Give rank 0 a recorder, and close the tracker at the end; other ranks stay as they are.

    What MLflow lacks is in the storage with each checkpoint, and at the end.
    """
    if worker.rank > 0:
        yield worker
        return
    job, listener = context.job, context.metrics_listener
    meter = usage.UsageMeter(
        context.storage(), context.name, job.cluster, worker.world_size, job.cost
    )
    storage = f"{mask(job.storage).rstrip('/')}/{context.name}"
    tracker = tracking.Tracker(
        context.run,
        own_spool(context.name, context.fence),
        context.check_fence,
        quiet_s=_quiet_s(context),
        also_kept_in=f"{storage}/unsent",
        replay_command=replay_command(context.name, job.storage, job.tracking.uri),
    )
    unsent = UnsentRecords(
        context.storage(), context.name, context.run.run_id, tracker.spool, context.check_fence
    )
    if num_restored := context.wait_out(unsent.restore):
        logger.warning("%d records that MLflow lacked are sent from %s", num_restored, storage)
    checkpoints.before_commit = unsent.save
    total_images = job.train.total_images(num_samples)
    recorder = _RunRecorder(tracker, total_images, callbacks.on_report, listener, meter)
    stateful = {} if listener is None else {"metrics_listener": listener}
    with meter.write_periodically():
        try:
            yield replace(worker, recorder=recorder, stateful=stateful)
        except BaseException:
            # The run may restart, and sends from the same spool if it is on this machine.
            tracker.close(min(FAILED_CLOSE_S, context.run.retry_timeout_s))
            with suppress(OrchestratorError):
                unsent.save()
            raise
        tracker.close()
        context.wait_out(unsent.save)


@dataclass
class _RunRecorder:
    """Sends metrics and images to MLflow, to a sweep and to the progress display."""

    tracker: tracking.Tracker
    total_images: int
    on_report: ReportCallback
    listener: MetricsListener | None
    meter: usage.UsageMeter
    latest: dict[str, float] = field(default_factory=dict)

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        points = {**values, **self.meter.run_usage().metrics()}
        self.tracker.log_metrics(points, images_seen)
        self.latest.update(points)
        report = ProgressReport(images_seen, self.total_images, dict(self.latest), points)
        if self.listener is not None:
            self.listener(report)
        self.on_report(report)

    def log_grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        self.tracker.log_image(key, tile(rows), images_seen)

    def log_text(self, name: str, text: str, images_seen: int) -> None:
        self.tracker.log_text(name, text, images_seen)
