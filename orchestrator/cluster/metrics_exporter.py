"""Export metrics of a run to Prometheus, through Ray's metrics endpoint.

The driver exports them, from what its workers report anyway: it exists before the first worker and
while all of them are gone, so that an alert can fire when nothing happens. Ray drops a gauge that
was not set for 20 s. All gauges are set every few seconds, and so vanish when the run ends or its
driver is lost. Counters would stay until the node ends, and start at zero with each process: there
are none. Ray puts `ray_` before each name.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from ray.util.metrics import Gauge

from orchestrator.cluster.worker_state import ENDED, WorkerGroupStatus
from orchestrator.config.job import Job
from orchestrator.console import ProgressReport
from orchestrator.errors import Diverged
from orchestrator.periodic import Periodic
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.training.interfaces import STEP

EXPORT_S = 5.0
"""Every 10 s Ray sends those gauges to its endpoint that were set since the last time."""
PREFIX = "orchestrator_"
LABELS = ("job_name", "run")
"""Labels of every gauge. Prometheus itself sets the label `job`."""
GAUGES: Mapping[str, tuple[str, str | None]] = {
    "running": ("1 while the run has a driver, 0 when it has ended", None),
    "diverged": ("1 when the run has ended because the training diverged, else 0", None),
    "workers": ("Workers that train", None),
    "restarts": ("Restarts of the workers under this driver, moves to other nodes included", None),
    "progress_timestamp_seconds": (
        "When a worker last began a step, a validation, sample images or a checkpoint; before "
        "the first, when the driver started",
        None,
    ),
    "checkpoint_timestamp_seconds": (
        "When the newest checkpoint was committed; before the first one of this driver, when "
        "the driver started",
        None,
    ),
    "images_seen": ("Images that the run has trained on", None),
    "images_target": ("Images that the whole run trains on", None),
    "images_per_second": ("Images per second of all workers, since the previous report", None),
    "step_seconds": ("Mean duration of a step, since the previous report", None),
    "data_wait_fraction": ("Fraction of the time that the slowest rank waits for data", None),
    "skipped_updates": ("Updates skipped because their gradient was not finite", None),
    "rollbacks": ("Rollbacks to a checkpoint", None),
    "metric": ("Newest value of a loss, a validation metric or another metric", "name"),
    "gpu_memory_bytes": ("GPU memory that a worker's process holds", "rank"),
    "gpu_hours": ("GPU-hours that the run has used", None),
    "cpu_hours": ("CPU-hours that the run has used", None),
    "cost": ("Cost of the run", "currency"),
}
"""Help text of each gauge, and its label beside LABELS."""
RATES = ("images_per_second", "step_seconds", "data_wait_fraction")
"""Gauges without a value while there are no workers."""
_GAUGE_OF_METRIC = {
    "images_per_s": "images_per_second",
    "data/wait_fraction": "data_wait_fraction",
    "guard/skipped_updates": "skipped_updates",
    "guard/rollbacks": "rollbacks",
    "cost/gpu_hours": "gpu_hours",
    "cost/cpu_hours": "cpu_hours",
}
_NOT_EXPORTED = ("data/", "guard/", "cost/", "epoch")
"""Prefixes of metrics that are not exported under their own names."""

GaugeKey = tuple[str, str]
"""Name of a gauge, and the value of its own label, "" without one."""

logger = logging.getLogger(__name__)


def held_gpu_bytes() -> int:
    """Return the GPU memory that this process holds, in use or cached."""
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))


class MetricsExporter:
    """Values of the gauges of one run."""

    def __init__(self, job: Job, run: str, clock: Callable[[], float] = time.time) -> None:
        self.labels = dict(zip(LABELS, (job.name, run), strict=True))
        self._batch_size, self._clock = job.train.batch_size, clock
        self._currency = (job.cost.currency if job.cost else None) or ""
        self._gpus = job.cluster.gpus
        self._activities: dict[int, tuple[int, str]] = {}
        self._warned = False
        self._gauges: dict[str, Gauge] = {}
        now = clock()
        self.values: dict[GaugeKey, float] = {
            ("running", ""): 1,
            ("diverged", ""): 0,
            ("workers", ""): 0,
            ("restarts", ""): 0,
            ("progress_timestamp_seconds", ""): now,
            ("checkpoint_timestamp_seconds", ""): now,
        }

    def wrap_report_callback(self, show: ReportCallback) -> ReportCallback:
        """Return a callback that exports a report and then calls ``show``."""

        def export_and_show(report: ProgressReport) -> None:
            with self.suppress_errors():
                self.update_from_report(report)
            show(report)

        return export_and_show

    @contextmanager
    def suppress_errors(self) -> Iterator[None]:
        """Log the first error of a block as a warning, and suppress all: training goes on."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                logger.warning("the metrics of this run for Prometheus are incomplete: %r", error)
            self._warned = True

    def update_from_report(self, report: ProgressReport) -> None:
        """Update from a progress report of rank 0."""
        metrics, values = report.metrics, self.values
        values["images_seen", ""], values["images_target", ""] = report.images_seen, report.total
        for name, value in metrics.items():
            if name in _GAUGE_OF_METRIC:
                values[_GAUGE_OF_METRIC[name], ""] = value
            elif not name.startswith(_NOT_EXPORTED):
                values["metric", name] = value
        if metrics.get("images_per_s"):
            values["step_seconds", ""] = self._batch_size / metrics["images_per_s"]
        if "cost/total" in metrics:
            values["cost", self._currency] = metrics["cost/total"]

    def update_safely(self, status: WorkerGroupStatus) -> None:
        """Update from the workers' status; raises nothing."""
        with self.suppress_errors():
            self._update(status)

    def _update(self, status: WorkerGroupStatus) -> None:
        heartbeats = status.heartbeats
        activities = {rank: (one.num_steps, one.activity) for rank, one in heartbeats.items()}
        # A group that fails again and again before its first step makes no progress.
        changed = {r: new for r, new in activities.items() if self._activities.get(r) != new}
        if any(num_steps for num_steps, _ in changed.values()):
            self.values["progress_timestamp_seconds", ""] = self._clock()
        self._activities = activities
        self.values["restarts", ""] = len(status.failures)
        self._set_workers(sum(activity != ENDED for _, activity in activities.values()))
        for rank, heartbeat in heartbeats.items():
            if heartbeat.checkpoint_at is not None:
                self.values["checkpoint_timestamp_seconds", ""] = heartbeat.checkpoint_at
            if self._gpus:
                self.values["gpu_memory_bytes", str(rank)] = heartbeat.gpu_bytes

    def _set_workers(self, num_workers: int) -> None:
        self.values["workers", ""] = num_workers
        if not num_workers:
            for key in list(self.values):  # others may add keys meanwhile
                if key[0] in (*RATES, "gpu_memory_bytes"):
                    del self.values[key]

    def set_activity(self, activity: str) -> None:
        """Note that this process, the only worker, begins another activity."""
        self._set_workers(1)
        self.values["progress_timestamp_seconds", ""] = self._clock()
        if self._gpus and activity == STEP:
            self.values["gpu_memory_bytes", "0"] = held_gpu_bytes()

    def checkpoint_saved(self) -> None:
        """Note that this process, the only worker, has committed a checkpoint."""
        self.values["checkpoint_timestamp_seconds", ""] = self._clock()

    def end(self, *, diverged: bool) -> None:
        """Note the end of the run."""
        self.values.update({("running", ""): 0, ("diverged", ""): diverged})
        self._set_workers(0)

    def set_gauges(self) -> None:
        """Set Ray's gauges to the values; raises nothing."""
        with self.suppress_errors():
            if not self._gauges:
                self._gauges = {
                    name: Gauge(PREFIX + name, help_text, (*LABELS, *([label] if label else [])))
                    for name, (help_text, label) in GAUGES.items()
                }
            for (name, label), value in list(self.values.items()):
                own = GAUGES[name][1]
                tags = self.labels | ({own: label} if own else {})
                self._gauges[name].set(float(value), tags)


@contextmanager
def export_metrics(context: RunContext) -> Iterator[MetricsExporter]:
    """Export the metrics of the run until the block ends, and then how it has ended."""
    exporter = MetricsExporter(context.job, context.name)
    export = exporter.set_gauges
    with Periodic(export, EXPORT_S, name="metrics", at_end=True, join_timeout_s=EXPORT_S):
        diverged = False
        try:
            yield exporter
        except Diverged:
            diverged = True
            raise
        finally:
            exporter.end(diverged=diverged)
