"""A job on Ray Train: workers, their failures, and what they tell the driver."""

import concurrent.futures
import contextlib
import itertools
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train import TrainingFailedError as RayTrainingFailed
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.failure_policy import Cause, Decision, Failure, classify, decide
from orchestrator.cluster.metrics_exporter import exposed
from orchestrator.cluster.ray_worker import train_function
from orchestrator.cluster.rendezvous import TorchOnNodes
from orchestrator.cluster.supervisor import Watch
from orchestrator.cluster.worker_state import Mailbox, News
from orchestrator.config.job import ClusterSection, Job
from orchestrator.console import Report
from orchestrator.diagnostics.doctor import require_ray_cluster
from orchestrator.errors import EnvironmentProblem, TrainingFailed
from orchestrator.models.base import build_model
from orchestrator.redaction import mask
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.worker_setup import Setup
from orchestrator.training.loop import Outcome
from orchestrator.training.preflight import has_batch_norm

_RAY_TRAIN = {
    # Seconds between two looks at the workers; 2 by default, which a restart waits for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # watch.py does what Ray's watcher would, which takes a process in each group.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_ELASTIC = {
    # Seconds for which Ray waits to place as many workers as it has counted on; 60 by default. It
    # may count on a node that drains, where it places none.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}
COLLECTIVE_TIMEOUT_S = 600
"""After this long a rank that waits for a dead or stuck one gives up, and Ray restarts them all."""

logger = logging.getLogger(__name__)


def train_on_ray(setup: Setup, show: Callable[[Report], None], stop: StopRequest) -> Outcome:
    """Train on the cluster of RAY_ADDRESS, or on one started in this process for the purpose.

    Raises:
        EnvironmentProblem: the machine has too little for the job's workers.
        TrainingFailed: the workers failed more often than the job allows.
        OrchestratorError: what a worker found wrong, of its own class.
    """
    with connection(setup.job):
        return train_connected(setup, show, stop)


def train_connected(setup: Setup, show: Callable[[Report], None], stop: StopRequest) -> Outcome:
    """Train on the cluster that this process is connected to.

    Raises:
        TrainingFailed: the workers failed more often than the job allows.
        OrchestratorError: what a worker found wrong, of its own class.
    """
    cluster = setup.job.cluster
    elastic = cluster.min_workers < cluster.max_workers
    settings = _RAY_TRAIN | (_ELASTIC if elastic else {})
    os.environ.update({k: v for k, v in settings.items() if k not in os.environ})
    with bookkeeping("ray-train", setup.name) as notes, exposed(setup) as exposition:
        mailbox = _mailbox_on_this_node()
        shown = exposition.showing(show)
        watch = Watch(mailbox, cluster, resources_of(cluster), shown, exposition.hear)
        callback = FailureCallback(mailbox, setup.job)
        with watch.watching(), stop.heard_by(watch.stop):
            for attempt in itertools.count():
                trainer = _trainer(setup, mailbox, callback, notes / str(attempt))
                try:
                    _fit(trainer, watch, stop)
                    break
                except ray.exceptions.RayActorError:
                    failure = Failure(Cause.CONTROLLER, "its process is gone")
                except RayTrainingFailed as error:
                    news: News = ray.get(mailbox.read.remote())
                    if news.error is not None:
                        raise news.error from error
                    if news.decision is not None and news.decision.action == "give up":
                        break
                    # No worker has failed, so nobody was asked: they could not begin together.
                    failure = Failure(Cause.START, _last_words(error))
                left: News = ray.get(mailbox.read.remote())
                if callback.after(failure).action == "give up":
                    break
                _release(left)
        news = ray.get(mailbox.read.remote())
        if news.outcome is None:
            reason = news.decision.reason if news.decision else "the workers gave no result"
            raise TrainingFailed(f"training failed: {reason}")
        return Outcome(**news.outcome)


class _Trainer(TorchTrainer):
    """Ray Train's, without two processes that nobody needs here.

    Each of them imports for 4 s of a core, just when the workers do. One is for Ray Data's sets.
    The other frees what a lost controller leaves, which ``_release`` does; it outlives its job.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        ours = super()._create_default_callbacks()  # type: ignore[misc]  # Train v2's
        return [callback for callback in ours if not isinstance(callback, unneeded)]


def _trainer(setup: Setup, mailbox: Any, callback: "FailureCallback", notes: Path) -> TorchTrainer:
    cluster = setup.job.cluster
    workers: Any = cluster.max_workers
    callbacks: list[Any] = [callback]
    if cluster.min_workers < cluster.max_workers:
        workers = (cluster.min_workers, cluster.max_workers)
    return _Trainer(
        train_function,
        train_loop_config={"setup": setup, "mailbox": mailbox},
        torch_config=TorchOnNodes(
            backend="nccl" if cluster.gpus_per_worker else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # Train v2's, as RunConfig
            num_workers=workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources_of(cluster),
            # Ray would end the workers without a word; watch.py asks them to save first.
            elastic_resize_monitor_interval_s=1e9,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Train v2's, exported at run time
            name=setup.name.replace("/", "-"),
            storage_path=str(notes),
            failure_config=FailureConfig(max_failures=-1),  # the callback decides
            callbacks=callbacks,
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        ),
    )


@contextlib.contextmanager
def bookkeeping(of: str, name: str) -> Iterator[Path]:
    """An empty folder for the notes that Ray makes ``of`` a run or a sweep, which nobody reads.

    Named for what it is about: the next driver removes what a killed one left.
    """
    folder = Path(tempfile.gettempdir(), f"orchestrator-{os.getuid()}", of, name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _release(left: News) -> None:
    """Free what a lost controller's workers held; Ray Train's own cleaner needs a dashboard."""
    for group in {beat.group.id: beat.group for beat in left.beats.values() if beat.group}.values():
        with contextlib.suppress(ray.exceptions.RayError):
            ray.util.remove_placement_group(group)


def _fit(trainer: TorchTrainer, watch: Watch, stop: StopRequest) -> None:
    """Run Ray Train in a thread: signals are the main thread's, and Ray leaves them alone there.

    Raises what Ray Train raises; KeyboardInterrupt if it is to stop and no worker can be asked.
    """
    ended = in_thread(trainer.fit, "ray-train")
    while not concurrent.futures.wait([ended], timeout=0.2).done:
        if stop.asked and not watch.training:
            raise KeyboardInterrupt
    ended.result()


def in_thread(call: Callable[[], Any], name: str) -> "concurrent.futures.Future[Any]":
    """What ``call`` gives, from a thread that nobody waits for.

    A driver that is interrupted, or whose cluster is gone, ends at once with what runs there.
    """
    ended: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended


class FailureCallback(UserCallback):
    """Decides, in Ray Train's controller, what follows the end of a group of workers."""

    def __init__(self, mailbox: Any, job: Job) -> None:
        self.mailbox, self.job = mailbox, job

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray Train calls it when workers have failed. What it raises ends the training."""
        news: News = ray.get(self.mailbox.read.remote())
        images_seen = news.report["images_seen"] if news.report else 0
        decision = self.after(classify(worker_exceptions, images_seen))
        if decision.action == "give up":
            raise TrainingFailed(decision.reason)

    def after(self, failure: Failure) -> Decision:
        """The decision on ``failure``, written down and told to the person."""
        history: list[Failure] = ray.get(self.mailbox.failed.remote(failure))
        # To ask the model takes seconds, which no other restart should wait for.
        halvings = most_halvings(self.job) if failure.cause is Cause.OUT_OF_MEMORY else 0
        decision = decide(history, self.job.cluster.max_failures, halvings)
        ray.get(self.mailbox.tell.remote(decision=decision))
        ray.get(self.mailbox.note.remote(f"{decision.action}: {decision.reason}"))
        return decision


def most_halvings(job: Job) -> int:
    """How often the images of a pass can be halved: never where batches are normalised."""
    with torch.device("meta"):
        model = build_model(job.model)
    return 0 if has_batch_norm(model) else job.images_per_pass.bit_length() - 1


def _mailbox_on_this_node() -> Any:
    """The actor lives where the driver does: if that node is lost, so is the job."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Mailbox)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote()


@contextlib.contextmanager
def _own_handler(number: signal.Signals) -> Iterator[None]:
    """Give the signal back its handler afterwards: Ray replaces it and leaves its own."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, handler)


def resources_of(cluster: ClusterSection) -> dict[str, float]:
    """What one worker needs."""
    gpus = {"GPU": float(cluster.gpus_per_worker)} if cluster.gpus_per_worker else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpus}


@contextlib.contextmanager
def connection(job: Job) -> Iterator[None]:
    """A connection to the cluster that RAY_ADDRESS names, or to one of this process alone.

    Raises EnvironmentProblem if there is none, or if it has too little for the job's workers.
    """
    cluster, address = job.cluster, os.environ.get("RAY_ADDRESS")
    needed = cluster.min_workers * cluster.cpus_per_worker
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    require_ray_cluster(os.environ)
    try:
        with _own_handler(signal.SIGTERM):
            if address:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(needed, os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot reach the Ray cluster at {address or 'this machine'}: {error}; "
            "check RAY_ADDRESS, or train without Ray: orchestrator run --local"
        ) from error
    try:
        _check_resources(cluster, needed, started_here=not address)
        _check_places(job)
        yield
    finally:
        ray.shutdown()


def _check_resources(cluster: ClusterSection, cpus: int, *, started_here: bool) -> None:
    have = ray.cluster_resources()
    for kind, needed in (("CPU", cpus), ("GPU", cluster.min_workers * cluster.gpus_per_worker)):
        if have.get(kind, 0) >= needed:
            continue
        what = (
            f"{cluster.min_workers} workers need {needed} {kind}s and the cluster has "
            f"{have.get(kind, 0):g}"
        )
        if started_here:
            raise EnvironmentProblem(
                f"{what}; set cluster.workers or cluster.{kind.lower()}s_per_worker lower"
            )
        logger.warning("%s; waiting until nodes join", what)


def _check_places(job: Job) -> None:
    """Warn of places that only one machine can see, when the cluster has several."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    places = {
        "storage": job.storage,
        "data.train": job.data.train,
        "tracking.uri": job.tracking.uri,
    }
    for name, place in places.items():
        local = place.startswith(("sqlite:", "file:")) or "://" not in place
        if nodes > 1 and local:
            logger.warning(
                "%s is on one machine and the cluster has %d; unless all of them mount it there, "
                "use a server or s3://bucket/prefix: %s",
                name,
                nodes,
                mask(place),
            )


def _last_words(error: RayTrainingFailed) -> str:
    """The end of what Ray says of a failure: the error itself and not the way there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
