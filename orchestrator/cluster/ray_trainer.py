"""Train a job on Ray Train: start the workers and decide what follows their failures."""

import concurrent.futures
import contextlib
import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train import TrainingFailedError as RayTrainingFailed

from orchestrator.cluster.failure_policy import (
    Cause,
    Decision,
    Failure,
    classify,
    decide,
    is_import_error,
    last_line,
)
from orchestrator.cluster.metrics_exporter import export_metrics
from orchestrator.cluster.ray_compat import (
    ELASTIC_TRAIN_SETTINGS,
    TRAIN_SETTINGS,
    ClusterMemory,
    lost_process_error,
    make_torch_trainer,
    set_defaults,
)
from orchestrator.cluster.ray_session import resources_of, start_actor, training_session
from orchestrator.cluster.ray_worker import train_function
from orchestrator.cluster.rendezvous import NodeNetworkTorchConfig
from orchestrator.cluster.supervisor import Supervisor
from orchestrator.cluster.worker_state import WorkerGroupState, WorkerGroupStatus
from orchestrator.config.job import Job
from orchestrator.console import ProgressReport
from orchestrator.errors import TrainingFailed
from orchestrator.models.base import build_model
from orchestrator.private_folder import private_folder
from orchestrator.runs.run_context import RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.training.loop import Outcome
from orchestrator.training.preflight import has_batch_norm

COLLECTIVE_TIMEOUT_S = 600
"""A rank that waits this long for a dead or stuck one fails, and Ray restarts them all."""


def train_on_ray(
    setup: RunContext, show: Callable[[ProgressReport], None], stop: StopRequest
) -> Outcome:
    """Train on the cluster of RAY_ADDRESS, or on one that is started for this process alone.

    Raises what ``training_session`` and ``train_connected`` raise.
    """
    with training_session(setup.job):
        return train_connected(setup, show, stop)


def train_connected(
    setup: RunContext, show: Callable[[ProgressReport], None], stop: StopRequest
) -> Outcome:
    """Train on the cluster that this process is connected to.

    Raises:
        TrainingFailed: the workers failed more often than the job allows.
        OrchestratorError: an error that a worker found, of its own class.
    """
    cluster = setup.job.cluster
    set_defaults(TRAIN_SETTINGS)
    if cluster.min_workers < cluster.max_workers:
        set_defaults(ELASTIC_TRAIN_SETTINGS)
    with (
        scratch_folder("ray-train", setup.name) as folder,
        cluster_memory() as memory,
        export_metrics(setup) as exporter,
    ):
        state = start_actor(WorkerGroupState, memory, max_restarts=cluster.max_failures)
        report = exporter.wrap_report_callback(show)
        supervisor = Supervisor(state, cluster, report, exporter.update_safely)
        callback = FailureCallback(state, setup.job)
        with supervisor.running(), stop.on_stop(supervisor.request_stop):
            for attempt in itertools.count():
                trainer = _make_trainer(setup, state, callback, folder / str(attempt))
                failure = _fit(trainer, state, supervisor, stop)
                left: WorkerGroupStatus = ray.get(state.read.remote())
                if failure is None or callback.decide_after(failure).action == "stop":
                    break
                _release(left)
        status: WorkerGroupStatus = ray.get(state.read.remote())
        if status.outcome is None:
            reason = status.decision.reason if status.decision else "the workers gave no result"
            raise TrainingFailed(f"training failed: {reason}")
        return Outcome(**status.outcome)


def _fit(trainer: Any, state: Any, supervisor: Supervisor, stop: StopRequest) -> Failure | None:
    """Run Ray Train to its end.

    Returns a failure that no worker had and the callback did not decide on; None if there is none.

    Raises:
        OrchestratorError: an error that a worker found and that no retry can fix.
        KeyboardInterrupt: the run is to stop and no worker can be asked.
    """
    try:
        _wait_for_fit(trainer, supervisor, stop)
    except (ray.exceptions.RayActorError, RayTrainingFailed) as error:
        status: WorkerGroupStatus = ray.get(state.read.remote())
        if isinstance(error, ray.exceptions.RayActorError):
            return _controller_failure(error, has_started=bool(status.heartbeats))
        if status.error is not None:
            raise status.error from error
        if status.decision is not None and status.decision.action == "stop":
            return None
        line = last_line(error)
        return Failure(Cause.IMPORT if is_import_error(line) else Cause.START, line)
    return None


def _controller_failure(error: ray.exceptions.RayActorError, *, has_started: bool) -> Failure:
    """Describe the loss of Ray Train's controller; by its last error line if it was starting."""
    line = ""
    if error.actor_init_failed:
        line = last_line(error)
    elif not has_started:  # later its log may hold the errors of workers
        line = lost_process_error(error)
    if is_import_error(line):
        return Failure(Cause.IMPORT, f"Ray Train's controller: {line}")
    return Failure(Cause.CONTROLLER, line or "its process is gone")


def _wait_for_fit(trainer: Any, supervisor: Supervisor, stop: StopRequest) -> None:
    """Run Ray Train in a thread: signals belong to the main thread, where Ray would take them."""
    ended = in_thread(trainer.fit, "ray-train")
    while not concurrent.futures.wait([ended], timeout=0.2).done:
        if stop.requested and not supervisor.has_workers:
            raise KeyboardInterrupt
        if supervisor.loss is not None:
            raise supervisor.loss
    ended.result()


def _make_trainer(setup: RunContext, state: Any, callback: Any, folder: Path) -> Any:
    cluster = setup.job.cluster
    is_elastic = cluster.min_workers < cluster.max_workers
    sizes: Any = (cluster.min_workers, cluster.max_workers)
    return make_torch_trainer(
        train_function,
        train_loop_config={"setup": setup, "state": state},
        torch_config=NodeNetworkTorchConfig(
            backend="nccl" if cluster.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # Train v2's, as RunConfig
            num_workers=sizes if is_elastic else cluster.max_workers,
            use_gpu=cluster.gpus > 0,
            resources_per_worker=resources_of(cluster),
            # Ray would kill the workers at once; supervisor.py asks them to save first.
            elastic_resize_monitor_interval_s=1e9,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Train v2's, exported at run time
            name=setup.name.replace("/", "-"),
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=-1),  # the callback decides
            callbacks=[callback],
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        ),
    )


@contextlib.contextmanager
def cluster_memory() -> Iterator[ClusterMemory]:
    """Give a memory in the cluster, and delete it at the end unless the cluster may be lost."""
    memory, is_lost = ClusterMemory(), False
    try:
        yield memory
    except ray.exceptions.RayError:
        is_lost = True
        raise
    finally:
        if not is_lost:
            memory.delete()


@contextlib.contextmanager
def scratch_folder(kind: str, name: str) -> Iterator[Path]:
    """Make an empty folder for the files that Ray writes of a run or sweep and nobody reads.

    Its path is the same for each driver of ``name``: the next one removes what a killed one left.
    """
    folder = private_folder("orchestrator", Path(tempfile.gettempdir())) / kind / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _release(left: WorkerGroupStatus) -> None:
    """Free what a lost controller's workers held; Ray Train's own cleaner needs a dashboard."""
    groups = [heartbeat.placement_group for heartbeat in left.heartbeats.values()]
    for group in {group.id: group for group in groups if group}.values():
        with contextlib.suppress(ray.exceptions.RayError):
            ray.util.remove_placement_group(group)


def in_thread(call: Callable[[], Any], name: str) -> "concurrent.futures.Future[Any]":
    """Run ``call`` in a daemon thread.

    A driver that is interrupted, or whose cluster is gone, exits at once without waiting for it.
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
    """Callback in Ray Train's controller that decides after the failure of a worker group."""

    def __init__(self, state: Any, job: Job) -> None:
        self._state, self._job = state, job

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Decide after the workers have failed; an exception raised here ends the training."""
        status: WorkerGroupStatus = ray.get(self._state.read.remote())
        images_seen = status.report["images_seen"] if status.report else 0
        started = {rank for rank, one in status.heartbeats.items() if one.num_steps}
        logged = {
            rank: line
            for rank, error in worker_exceptions.items()
            if rank not in started and isinstance(error, ray.exceptions.RayActorError)
            if (line := lost_process_error(error))
        }
        decision = self.decide_after(classify(worker_exceptions, images_seen, logged))
        if decision.action == "stop":
            raise TrainingFailed(decision.reason)

    def decide_after(self, failure: Failure) -> Decision:
        """Decide after ``failure``, record the decision and show it to the user."""
        history: list[Failure] = ray.get(self._state.record_failure.remote(failure))
        # Building the model takes seconds, which no other restart should wait for.
        halvings = max_halvings(self._job) if failure.cause is Cause.OUT_OF_MEMORY else 0
        decision = decide(history, self._job.cluster.max_failures, halvings)
        ray.get(self._state.update.remote(decision=decision))
        ray.get(self._state.add_message.remote(f"{decision.action}: {decision.reason}"))
        return decision


def max_halvings(job: Job) -> int:
    """Count how often the images of a pass can be halved: 0 with batch normalization."""
    with torch.device("meta"):
        model = build_model(job.model)
    return 0 if has_batch_norm(model) else job.images_per_pass.bit_length() - 1
