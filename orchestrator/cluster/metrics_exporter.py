"""What Prometheus is told of a run, through Ray's metrics endpoint.

The process that drives the run tells it, from what its workers report anyway: it is there before
the first worker and while all of them are gone, so an alert can say that nothing happens. Ray
forgets a gauge that was not set for 20 s. All of them are set every few seconds, and so vanish
when the run ends or its driver is lost. Counters would stay until the node ends, and begin at zero
with each process: there are none. Ray puts `ray_` before each name.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from ray.util.metrics import Gauge

from orchestrator.cluster.worker_state import ENDED, News
from orchestrator.config.job import Job
from orchestrator.console import Report
from orchestrator.errors import Diverged
from orchestrator.runs.worker_setup import Setup, Show
from orchestrator.training.interfaces import STEP

SET_S = 5.0
"""Ray sends gauges to its endpoint every 10 s, those that were set since it did so last."""
PREFIX = "orchestrator_"
LABELS = ("job_name", "run")
"""Of every gauge. Prometheus itself writes the label `job`."""
GAUGES: Mapping[str, tuple[str, str | None]] = {
    "running": ("1 while the run has a driver, 0 when it has ended", None),
    "diverged": ("1 when the run has ended because the training diverged, else 0", None),
    "workers": ("Workers that train", None),
    "restarts": ("Restarts of the workers under this driver, moves to other machines too", None),
    "progress_timestamp_seconds": (
        "When a worker last began a step, or a validation, pictures or a checkpoint; before "
        "the first, when the driver began",
        None,
    ),
    "checkpoint_timestamp_seconds": (
        "When the newest checkpoint was committed; before the first one of this driver, when "
        "the driver began",
        None,
    ),
    "images_seen": ("Images that the training has seen", None),
    "images_wanted": ("Images that the whole training sees", None),
    "images_per_second": ("Images per second, over all workers, since the point before", None),
    "step_seconds": ("Seconds of a step, a mean since the point before", None),
    "data_wait_share": ("Share of the time in which the slowest rank waits for data", None),
    "skipped_updates": ("Updates left out because their gradient was not finite", None),
    "rollbacks": ("Times that the training went back to a checkpoint", None),
    "metric": ("The newest value of a loss, of the validation or of another metric", "name"),
    "gpu_memory_bytes": ("Memory of GPUs that a worker's process holds", "rank"),
    "gpu_hours": ("GPU-hours that the run has used", None),
    "cpu_hours": ("CPU-hours that the run has used", None),
    "cost": ("What the run has cost", "currency"),
}
"""Each gauge's meaning, and its label beside LABELS."""
RATES = ("images_per_second", "step_seconds", "data_wait_share")
"""What has no value while no worker is there."""
_OWN_NAMES = {
    "images_per_s": "images_per_second",
    "data_wait_share": "data_wait_share",
    "guard/skipped": "skipped_updates",
    "guard/rollbacks": "rollbacks",
    "cost/gpu_hours": "gpu_hours",
    "cost/cpu_hours": "cpu_hours",
}
_NOT_TOLD = ("data/", "guard/", "cost/", "epoch")
"""Beginnings of points that are no gauge by their name."""

Key = tuple[str, str]
"""Name of a gauge, and the value of its own label, empty where it has none."""

logger = logging.getLogger(__name__)


def gpu_bytes() -> int:
    """Memory of GPUs that this process holds, used or kept for later."""
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))


class Exposition:
    """The gauges of one run, from what is told of it."""

    def __init__(self, job: Job, run: str, clock: Callable[[], float] = time.time) -> None:
        self.labels = dict(zip(LABELS, (job.name, run), strict=True))
        self._batch_size, self._clock = job.train.batch_size, clock
        self._currency = (job.cost.currency if job.cost else None) or ""
        self._gpus = job.cluster.gpus_per_worker
        self._last: dict[int, tuple[int, str]] = {}
        self._warned = False
        now = clock()
        self.values: dict[Key, float] = {
            ("running", ""): 1,
            ("diverged", ""): 0,
            ("workers", ""): 0,
            ("restarts", ""): 0,
            ("progress_timestamp_seconds", ""): now,
            ("checkpoint_timestamp_seconds", ""): now,
        }

    def showing(self, show: Show) -> Show:
        """As ``show``, and what it takes is taken here too."""

        def both(report: Report) -> None:
            with self.harmless():
                self.report(report)
            show(report)

        return both

    @contextmanager
    def harmless(self) -> Iterator[None]:
        """A block that may go wrong; that is told once, and the training never hears of it."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                logger.warning("what Prometheus is told of this run is not whole: %r", error)
            self._warned = True

    def report(self, report: Report) -> None:
        """Take what rank 0 tells of a moment."""
        points = report.metrics
        new: dict[Key, float] = {
            ("images_seen", ""): report.images_seen,
            ("images_wanted", ""): report.total,
        }
        for name, value in points.items():
            if name in _OWN_NAMES:
                new[_OWN_NAMES[name], ""] = value
            elif not name.startswith(_NOT_TOLD):
                new["metric", name] = value
        if points.get("images_per_s"):
            new["step_seconds", ""] = self._batch_size / points["images_per_s"]
        if "cost/total" in points:
            new["cost", self._currency] = points["cost/total"]
        self.values.update(new)

    def hear(self, news: News) -> None:
        """Take what workers have told the driver; whatever it is, this raises nothing."""
        with self.harmless():
            self.news(news)

    def news(self, news: News) -> None:
        """Take what workers have told the driver."""
        now = {rank: (beat.steps, beat.doing) for rank, beat in news.beats.items()}
        # A group that fails again and again before its first step makes no progress.
        if any(self._last.get(r) != told for r, told in now.items() if told[0]):
            self.values["progress_timestamp_seconds", ""] = self._clock()
        self._last = now
        self.values["restarts", ""] = len(news.failures)
        self._set_workers(sum(doing != ENDED for _, doing in now.values()))
        for rank, beat in news.beats.items():
            if beat.saved_at is not None:
                self.values["checkpoint_timestamp_seconds", ""] = beat.saved_at
            if self._gpus:
                self.values["gpu_memory_bytes", str(rank)] = beat.gpu_bytes

    def _set_workers(self, number: int) -> None:
        self.values["workers", ""] = number
        if not number:
            gone = [key for key in list(self.values) if key[0] in (*RATES, "gpu_memory_bytes")]
            for key in gone:
                del self.values[key]

    def doing(self, what: str) -> None:
        """The only worker, this process, does something else from now on."""
        self._set_workers(1)
        self.values["progress_timestamp_seconds", ""] = self._clock()
        if self._gpus and what == STEP:
            self.values["gpu_memory_bytes", "0"] = gpu_bytes()

    def saved(self) -> None:
        """The only worker, this process, has committed a checkpoint."""
        self.values["checkpoint_timestamp_seconds", ""] = self._clock()

    def end(self, *, diverged: bool) -> None:
        """The run has ended."""
        self.values.update({("running", ""): 0, ("diverged", ""): diverged})
        self._set_workers(0)


@contextmanager
def exposed(setup: Setup) -> Iterator[Exposition]:
    """Tell Prometheus of the run until the block ends, and how that was."""
    exposition = Exposition(setup.job, setup.name)
    over = threading.Event()
    thread = threading.Thread(
        target=_set_until, args=(over, exposition), name="exposing", daemon=True
    )
    thread.start()
    diverged = False
    try:
        yield exposition
    except Diverged:
        diverged = True
        raise
    finally:
        exposition.end(diverged=diverged)
        over.set()
        thread.join(timeout=SET_S)


def _set_until(over: threading.Event, exposition: Exposition) -> None:
    """Set the gauges again and again, and once more when it is ``over``."""
    with exposition.harmless():
        gauges = {
            name: Gauge(PREFIX + name, meaning, (*LABELS, *([label] if label else [])))
            for name, (meaning, label) in GAUGES.items()
        }
        last = False
        while not last:
            last = over.is_set()
            for (name, label), value in list(exposition.values.items()):
                own = GAUGES[name][1]
                tags = exposition.labels | ({own: label} if own else {})
                gauges[name].set(float(value), tags)
            over.wait(SET_S)
