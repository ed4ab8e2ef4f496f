"""What rank 0 of a run records: metrics and pictures for MLflow, a sweep and the display."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from orchestrator import tracking
from orchestrator.console import ProgressReport
from orchestrator.errors import OrchestratorError
from orchestrator.evaluation.metric_names import EVALUATION
from orchestrator.image_grid import tile
from orchestrator.redaction import mask
from orchestrator.runs import usage
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.evaluation_task import EvaluationRecord
from orchestrator.runs.lease import Fence
from orchestrator.runs.replay import replay_command, spool_folder
from orchestrator.runs.run_context import (
    MetricsListener,
    ReportCallback,
    RunContext,
    WorkerCallbacks,
)
from orchestrator.runs.unsent import UnsentRecords
from orchestrator.training.interfaces import Worker

logger = logging.getLogger(__name__)

QUIET_S = 61.0
"""A request to MLflow is given up after two attempts of 30 s and a pause of 1 s. A driver waits so
long for those of one before it that may be alive, and only then asks MLflow what it has."""
FAILED_CLOSE_S = 60.0
"""Timeout for sending the last metrics of a run that has failed."""


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
def recording(
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
        context.storage(),
        context.name,
        context.run.run_id,
        tracker.spool,
        term=0 if context.fence is None else context.fence.term,
        check_fence=context.check_fence,
    )
    if num_restored := context.wait_out(unsent.restore):
        logger.warning("%d records that MLflow lacked are sent from %s", num_restored, storage)
    checkpoints.before_commit = unsent.save
    total_images = job.train.total_images(num_samples)
    recorder = RunRecorder(tracker, total_images, callbacks.on_report, listener, meter)
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
class RunRecorder:
    """Sends metrics and images to MLflow, to a sweep and to the progress display."""

    tracker: tracking.Tracker
    total_images: int
    on_report: ReportCallback
    listener: MetricsListener | None
    meter: usage.UsageMeter
    latest: dict[str, float] = field(default_factory=dict)

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Log points, with what the run has used so far."""
        points = {**values, **self.meter.run_usage().metrics()}
        self.tracker.log_metrics(points, images_seen)
        self.latest.update(points)
        report = ProgressReport(images_seen, self.total_images, dict(self.latest), points)
        if self.listener is not None:
            self.listener(report)
        self.on_report(report)

    def log_evaluation(self, evaluation: EvaluationRecord) -> None:
        """Log the values of an evaluation at the step of its checkpoint; any thread may call it."""
        points, seen = evaluation.points(), evaluation.images_seen
        self.tracker.log_metrics(points, seen)
        self.tracker.log_text("evaluation.json", evaluation.to_json(), seen)
        self.latest.update(points)

    def report_last_evaluation(self, values: Mapping[str, float], images_seen: int) -> None:
        """Report the values of the last evaluation, which MLflow has already, to a sweep."""
        points = {name: value for name, value in values.items() if name.startswith(EVALUATION)}
        report = ProgressReport(images_seen, self.total_images, dict(self.latest), points)
        if self.listener is not None:
            self.listener(report)
        self.on_report(report)

    def log_grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        """Log a grid of images."""
        self.tracker.log_image(key, tile(rows), images_seen)

    def log_text(self, name: str, text: str, images_seen: int) -> None:
        """Log a text file."""
        self.tracker.log_text(name, text, images_seen)
