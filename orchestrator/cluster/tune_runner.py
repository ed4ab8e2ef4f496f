"""Run the trials of a sweep on Ray Tune: Tune places them, our study chooses them."""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.cluster.hang_detection import kill_on_node
from orchestrator.cluster.metrics_exporter import export_metrics
from orchestrator.cluster.ray_compat import (
    TUNE_SETTINGS,
    keep_credentials_from_trials,
    set_defaults,
)
from orchestrator.cluster.ray_evaluation import RayEvaluation
from orchestrator.cluster.ray_session import (
    missing_resources,
    resources_of,
    start_actor,
    training_session,
)
from orchestrator.cluster.ray_trainer import in_thread, scratch_folder, train_connected
from orchestrator.cluster.ray_worker import DriverLogHandler
from orchestrator.cluster.sweep_actor import ActorTrialReporter, SweepController
from orchestrator.config.job import Job
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.periodic import Periodic
from orchestrator.runs.driver import train_in_process
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.status import SweepStatus, TrialHeartbeat
from orchestrator.sweeps.store import SweepStore
from orchestrator.sweeps.trial_runner import TrialTask, train_trial
from orchestrator.training.loop import Outcome

POLL_S = 1.0
HEARTBEAT_S = 2.0


def run_trials(
    job: Job,
    store: SweepStore,
    make_task: Callable[[Trial], TrialTask],
    show: Callable[[SweepStatus], None],
    stop: StopRequest,
) -> tuple[Sweep, bool]:
    """Run the trials of a sweep that has been created in ``store``.

    Args:
        job: what all trials have in common, with absolute paths.
        make_task: makes the task of a trial; it may raise OrchestratorError.
        show: called with the status every second.

    Returns:
        The sweep, and whether it was stopped.

    Raises:
        EnvironmentProblem: the cluster has no room for a single trial.
    """
    set_defaults(TUNE_SETTINGS)
    keep_credentials_from_trials()
    # Tune logs a traceback for each lost process; the study reports these in a line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    name = store.name
    with training_session(job), scratch_folder("ray-tune", name) as folder:
        concurrency = max_concurrent_trials(job)
        max_failures = job.cluster.max_failures
        controller = start_actor(
            SweepController, store.storage.uri, name, max_failures, store.fence
        )
        trainable = tune.with_parameters(_TrialProcess, controller=controller)
        # Workers beside the trial's process reserve their own resources; Tune wants some amount.
        is_alone = job.cluster.max_workers == 1
        reserved: Any = resources_of(job.cluster) if is_alone else {"memory": 1.0}
        tuner = tune.Tuner(
            tune.with_resources(trainable, reserved),
            tune_config=tune.TuneConfig(
                search_alg=_StudySearcher(controller, make_task),
                num_samples=-1,
                max_concurrent_trials=concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with stop.on_stop(lambda: controller.stop.remote("someone stopped the sweep")):
            _fit(tuner, controller, job, name, show)
        status: SweepStatus = ray.get(controller.status.remote(0))
        return status.sweep, status.stopped


def max_concurrent_trials(job: Job) -> int:
    """Return how many trials of ``job`` may run on the connected cluster at a time.

    Raises:
        EnvironmentProblem: the cluster has no room for a single trial.
    """
    assert job.sweep is not None
    cluster = job.cluster
    for kind, needed, available in missing_resources(cluster, cluster.max_workers):
        raise EnvironmentProblem(
            f"a trial of this sweep needs {needed:g} {kind}s and the cluster has {available:g}; "
            f"reduce cluster.workers or cluster.{kind.lower()}s_per_worker, or wait until nodes "
            "have joined"
        )
    have, per_worker = ray.cluster_resources(), resources_of(cluster)
    room = [int(have[kind] // (per_worker[kind] * cluster.max_workers)) for kind in per_worker]
    return min([*room, job.sweep.max_concurrent or room[0]])


class _TrialProcess(tune.Trainable):
    """A process that runs one trial after another."""

    def setup(self, config: dict[str, Any], controller: Any = None) -> None:
        self._controller = controller
        self.reset_config(config)
        logger = logging.getLogger("orchestrator")
        if not any(isinstance(handler, DriverLogHandler) for handler in logger.handlers):
            logger.addHandler(DriverLogHandler(controller))

    def step(self) -> dict[str, Any]:
        (reference,) = ray.get(self._controller.task.remote(self._number))
        task: TrialTask = ray.get(reference)
        is_alone = task.resolved.job.cluster.max_workers == 1
        reporter = ActorTrialReporter(self._controller, self._number)
        launcher = _train_alone if is_alone else train_connected
        self._node_id = ray.get_runtime_context().get_node_id()
        beat = self._send_heartbeat
        with Periodic(beat, HEARTBEAT_S, name="heartbeat", delay=True, join_timeout_s=60):
            end = train_trial(task, reporter, StopRequest(), launcher)
        if end.retryable:
            ray.get(self._controller.lost.remote(self._number, self._attempt, end.reason))
        else:
            ended = self._controller.ended.remote
            ray.get(ended(self._number, self._attempt, end.status, end.reason))
        return {"done": True}

    def _send_heartbeat(self) -> None:
        heartbeat = TrialHeartbeat(self._number, os.getpid(), self._node_id)
        self._controller.heartbeat.remote(heartbeat)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._number, self._attempt = int(new_config["trial"]), str(new_config["attempt"])
        return True


def _train_alone(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
    """Train in this process, with one worker."""
    with export_metrics(context) as exporter:
        report = exporter.wrap_report_callback(show)
        return train_in_process(
            context,
            report,
            stop,
            exporter.set_activity,
            exporter.checkpoint_saved,
            RayEvaluation,
        )


class _StudySearcher(Searcher):
    """Gives Tune the trials that the controller wants to run."""

    def __init__(self, controller: Any, make_task: Callable[[Trial], TrialTask]) -> None:
        super().__init__()
        self._controller, self._make_task = controller, make_task
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        while (trial := ray.get(self._controller.next_trial.remote(trial_id))) is not None:
            try:
                task = self._make_task(trial)
            except OrchestratorError as error:
                ended = self._controller.ended.remote
                ray.get(ended(trial.number, trial_id, "failed", str(error)))
                continue
            ray.get(self._controller.put_task.remote(trial.number, [ray.put(task)]))
            self._numbers[trial_id] = trial.number
            return {"trial": trial.number, "attempt": trial_id}
        return Searcher.FINISHED if ray.get(self._controller.is_over.remote()) else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers.pop(trial_id)
        # The process has reported its end, unless it could not.
        ray.get(self._controller.lost.remote(number, trial_id, "its process was lost"))


def _fit(
    tuner: tune.Tuner, controller: Any, job: Job, name: str, show: Callable[[SweepStatus], None]
) -> None:
    """Run Tune in a thread: signals belong to the main thread, where Tune would take them."""
    assert job.sweep is not None
    hours = job.sweep.max_hours
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    num_messages = 0
    ended = in_thread(tuner.fit, "ray-tune")
    try:
        while not wait([ended], timeout=POLL_S).done:
            if deadline is not None and time.monotonic() > deadline:
                controller.end_early.remote(f"sweep.max_hours is {hours:g}")
                deadline = None
            status: SweepStatus = ray.get(controller.status.remote(num_messages))
            for message in status.messages:
                log_info(message)
            num_messages += len(status.messages)
            for heartbeat in status.unresponsive:
                _kill(heartbeat)
            show(status)
        ended.result()
        show(ray.get(controller.status.remote(num_messages)))
    except tune.TuneError:
        ray.get(controller.is_over.remote())  # raises if Tune failed because it is lost
        raise
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, OrchestratorError) else error from None


def _kill(heartbeat: TrialHeartbeat) -> None:
    """Log the stack of a stuck process and kill it; its trial restarts in another one."""
    stack = kill_on_node(heartbeat.node_id, heartbeat.pid)
    log_info(
        f"trial {heartbeat.number} (process {heartbeat.pid}) sends no heartbeat; it is killed and "
        f"restarted. Its stack:\n{stack}"
    )
