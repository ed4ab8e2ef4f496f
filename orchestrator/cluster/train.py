"""A job on Ray Train: workers, their failures, and what they tell the driver."""

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train import TrainingFailedError as RayTrainingFailed
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.mailbox import Mailbox, News
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TrainingFailed
from orchestrator.job import ClusterSection, Job
from orchestrator.progress import Report, say
from orchestrator.redaction import mask
from orchestrator.run import Setup, train_worker
from orchestrator.training.loop import Outcome

POLL_INTERVAL_S = 0.5
COLLECTIVE_TIMEOUT_S = 600
"""After this long a rank that waits for a dead or stuck one gives up, and Ray restarts them all."""

logger = logging.getLogger(__name__)


def train_on_ray(setup: Setup, show: Callable[[Report], None]) -> Outcome:
    """Train on the connected cluster, or on one started in this process for the purpose.

    Raises:
        EnvironmentProblem: the machine has too little for the job's workers.
        TrainingFailed: the workers failed more often than the job allows.
        OrchestratorError: what a worker found wrong, of its own class.
    """
    cluster = setup.job.cluster
    # Ray Train's own notes go to `bookkeeping`; checkpoints go to the job's storage.
    with _connection(setup), tempfile.TemporaryDirectory(prefix="ray-train-") as bookkeeping:
        mailbox = _mailbox_on_this_node()
        trainer = TorchTrainer(
            _train_function,
            train_loop_config={"setup": setup, "mailbox": mailbox},
            torch_config=TorchConfig(
                backend="nccl" if cluster.gpus_per_worker else "gloo",
                timeout_s=COLLECTIVE_TIMEOUT_S,
            ),
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=_resources(cluster),
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # Train v2's, exported at run time
                name=setup.name,
                storage_path=bookkeeping,
                failure_config=FailureConfig(max_failures=cluster.max_failures),
                worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
            ),
        )
        news: News
        with _showing(mailbox, show):
            try:
                with _own_handler(signal.SIGINT):
                    trainer.fit()
            except SystemExit:  # from Ray's handler of Ctrl-C, with exit code 0
                raise KeyboardInterrupt from None
            except RayTrainingFailed as error:
                news = ray.get(mailbox.read.remote())
                raise news.error or TrainingFailed(_last_words(error)) from error
        news = ray.get(mailbox.read.remote())
        if news.outcome is None:
            raise TrainingFailed("the workers ended without a result")
        return Outcome(**news.outcome)


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


class _ToDriver(logging.Handler):
    """Takes a worker's warnings to where a person sees them."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self.mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self.mailbox.note.remote(record.getMessage())


def _train_function(config: dict[str, Any]) -> None:
    """One worker. An error that no retry can mend ends every later attempt at once."""
    context, mailbox = ray.train.get_context(), config["mailbox"]
    rank = context.get_world_rank()
    news: News = ray.get(mailbox.read.remote())
    if news.error is not None:
        raise news.error

    logging.getLogger("orchestrator").addHandler(_ToDriver(mailbox))

    def report(report: Report) -> None:
        mailbox.tell.remote(report=asdict(report))

    try:
        outcome = train_worker(
            config["setup"],
            rank=rank,
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
            report=report,
        )
    except OrchestratorError as error:
        if not error.retry:
            ray.get(mailbox.tell.remote(error=error))
        raise
    if rank == 0:
        ray.get(mailbox.tell.remote(outcome=asdict(outcome)))


def _resources(cluster: ClusterSection) -> dict[str, float]:
    gpus = {"GPU": float(cluster.gpus_per_worker)} if cluster.gpus_per_worker else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpus}


@contextlib.contextmanager
def _connection(setup: Setup) -> Iterator[None]:
    """A connection to the cluster that RAY_ADDRESS names, or to one of this process alone."""
    cluster, address = setup.job.cluster, os.environ.get("RAY_ADDRESS")
    needed = cluster.workers * cluster.cpus_per_worker
    logging.getLogger("ray.train").setLevel(logging.WARNING)
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
        _check_places(setup.job)
        yield
    finally:
        ray.shutdown()


def _check_resources(cluster: ClusterSection, cpus: int, *, started_here: bool) -> None:
    have = ray.cluster_resources()
    for kind, needed in (("CPU", cpus), ("GPU", cluster.workers * cluster.gpus_per_worker)):
        if have.get(kind, 0) >= needed:
            continue
        what = (
            f"{cluster.workers} workers need {needed} {kind}s and the cluster has "
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


@contextlib.contextmanager
def _showing(mailbox: Any, show: Callable[[Report], None]) -> Iterator[None]:
    """Pass the workers' newest report on every half second, from a thread."""
    done = threading.Event()

    def poll() -> None:
        shown, num_notes, last = None, 0, False
        while not last:
            last = done.wait(POLL_INTERVAL_S)  # and once more: what was told at the end counts too
            with contextlib.suppress(ray.exceptions.RayError):
                news: News = ray.get(mailbox.read.remote(), timeout=2)
                for note in news.notes[num_notes:]:
                    say(f"worker: {note}")
                num_notes = len(news.notes)
                if news.report is not None and news.report != shown:
                    show(Report(**news.report))
                    shown = news.report

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=3)


def _last_words(error: RayTrainingFailed) -> str:
    """The end of what Ray says of a failure: the error itself and not the way there."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return "\n  ".join(["training failed after its retries:", *lines[-3:]])
