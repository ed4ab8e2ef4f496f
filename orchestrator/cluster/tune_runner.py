"""A sweep on Ray Tune: Tune places the trainings and runs them, our study says which."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.hang_detection import stack_and_end
from orchestrator.cluster.metrics_exporter import exposed
from orchestrator.cluster.ray_trainer import (
    bookkeeping,
    connection,
    in_thread,
    resources_of,
    train_connected,
)
from orchestrator.cluster.ray_worker import ToDriver
from orchestrator.cluster.supervisor import EXAMINE_S
from orchestrator.cluster.sweep_actor import Conductor, DeskOf
from orchestrator.config.job import Job
from orchestrator.console import say
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.runs.driver import train_here
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.worker_setup import Setup, Show
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.status import Progress, Pulse
from orchestrator.sweeps.store import SweepStore
from orchestrator.sweeps.trial_runner import Task, train_trial
from orchestrator.training.loop import Outcome

POLL_S = 1.0
BEAT_S = 2.0
TUNE = {
    # All that is to be kept of a sweep is in its storage; Tune's own notes are not read again.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other form prints tables whatever it is told
    "TUNE_WARN_THRESHOLD_S": "5",
}


def search(
    job: Job,
    store: SweepStore,
    make_task: Callable[[Trial], Task],
    show: Callable[[Progress], None],
    stop: StopRequest,
) -> tuple[Sweep, bool]:
    """Carry out the sweep of ``store``, which has been announced; it, and whether it was stopped.

    Args:
        job: what all trainings have in common, with absolute places.
        make_task: what a training needs to know; it may raise OrchestratorError.
        show: takes how it stands, every second.

    Raises:
        EnvironmentProblem: the cluster has no room for a single training.
    """
    os.environ.update({k: v for k, v in TUNE.items() if k not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    name = store.name
    with connection(job), bookkeeping("ray-tune", name) as folder:
        concurrency = most_at_once(job)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Conductor)
        conductor = actor.options(num_cpus=0, scheduling_strategy=here).remote(
            store.storage.uri, name, job.cluster.max_failures
        )
        ray.get(conductor.is_over.remote())  # what it cannot do is told now
        searcher = _Searcher(conductor, make_task)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_Training, conductor=conductor), _place(job)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
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
        with stop.heard_by(lambda: conductor.stop.remote("someone stopped the sweep")):
            _fit(tuner, conductor, job, name, show)
        progress: Progress = ray.get(conductor.progress.remote(0))
        return progress.sweep, progress.stopped


def most_at_once(job: Job) -> int:
    """How many trainings of ``job`` the connected cluster has room for at a time.

    Raises EnvironmentProblem if it is none.
    """
    assert job.sweep is not None
    have, cluster = ray.cluster_resources(), job.cluster
    room = []
    for kind, per_worker in resources_of(cluster).items():
        needed = per_worker * cluster.max_workers
        if have.get(kind, 0) < needed:
            raise EnvironmentProblem(
                f"a training of this sweep needs {needed:g} {kind}s and the cluster has "
                f"{have.get(kind, 0):g}; set cluster.workers or cluster.{kind.lower()}s_per_worker "
                "lower, or wait until machines have joined"
            )
        room.append(int(have[kind] // needed))
    return min([*room, job.sweep.max_concurrent or room[0]])


def _place(job: Job) -> Any:
    """What Tune is to keep for a training: all of it, or a byte where workers have their own."""
    alone = job.cluster.max_workers == 1
    return resources_of(job.cluster) if alone else {"memory": 1.0}


class _Training(tune.Trainable):
    """A process that does one training after another."""

    def setup(self, config: dict[str, Any], conductor: Any = None) -> None:
        self._conductor = conductor
        self.reset_config(config)
        logger = logging.getLogger("orchestrator")
        if not any(isinstance(handler, ToDriver) for handler in logger.handlers):
            logger.addHandler(ToDriver(conductor))

    def step(self) -> dict[str, Any]:
        (reference,) = ray.get(self._conductor.task.remote(self._number))
        task: Task = ray.get(reference)
        alone = task.job.cluster.max_workers == 1
        with self._beating():
            end = train_trial(
                task,
                DeskOf(self._conductor, self._number),
                StopRequest(),
                _train_alone if alone else train_connected,
            )
        if end.lost:
            ray.get(self._conductor.lost.remote(self._number, self._attempt, end.why))
        else:
            ended = self._conductor.ended.remote
            ray.get(ended(self._number, self._attempt, end.status, end.why))
        return {"done": True}

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Give signs of life until the block ends."""
        node_id, over = ray.get_runtime_context().get_node_id(), threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_S):
                self._conductor.beat.remote(Pulse(self._number, os.getpid(), node_id))

        thread = threading.Thread(target=beat, name="heart", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._number, self._attempt = int(new_config["trial"]), str(new_config["attempt"])
        return True


def _train_alone(setup: Setup, show: Show, stop: StopRequest) -> Outcome:
    """Train in this process, with one worker."""
    with exposed(setup) as exposition:
        shown = exposition.showing(show)
        return train_here(setup, shown, stop, exposition.doing, exposition.saved)


class _Searcher(Searcher):
    """Asks the conductor what to run."""

    def __init__(self, conductor: Any, make_task: Callable[[Trial], Task]) -> None:
        super().__init__()
        self._conductor, self._make_task = conductor, make_task
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        while (trial := ray.get(self._conductor.next.remote(trial_id))) is not None:
            try:
                task = self._make_task(trial)
            except OrchestratorError as error:
                why = str(error)
                ray.get(self._conductor.ended.remote(trial.number, trial_id, "failed", why))
                continue
            ray.get(self._conductor.give.remote(trial.number, [ray.put(task)]))
            self._numbers[trial_id] = trial.number
            return {"trial": trial.number, "attempt": trial_id}
        return Searcher.FINISHED if ray.get(self._conductor.is_over.remote()) else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers.pop(trial_id)
        # It has told how it ended, unless its process could not.
        ray.get(self._conductor.lost.remote(number, trial_id, "its process was lost"))


def _fit(
    tuner: tune.Tuner, conductor: Any, job: Job, name: str, show: Callable[[Progress], None]
) -> None:
    """Run Tune in a thread: signals are the main thread's, and Tune leaves them alone there."""
    assert job.sweep is not None
    hours = job.sweep.max_hours
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    num_notes = 0
    ended = in_thread(tuner.fit, "ray-tune")
    try:
        while not wait([ended], timeout=POLL_S).done:
            if deadline is not None and time.monotonic() > deadline:
                conductor.end_early.remote(f"sweep.max_hours is {hours:g}")
                deadline = None
            progress: Progress = ray.get(conductor.progress.remote(num_notes))
            for note in progress.notes:
                say(note)
            num_notes += len(progress.notes)
            for pulse in progress.silent:
                _end(pulse)
            show(progress)
        ended.result()
        show(ray.get(conductor.progress.remote(num_notes)))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, OrchestratorError) else error from None
    except ray.exceptions.RayError as error:
        raise TryAgain(
            f"the sweep has lost its cluster ({type(error).__name__}); all that was told is in "
            f"the storage, go on with\n  orchestrator sweep resume {name}"
        ) from error


def _end(pulse: Pulse) -> None:
    """Say where a stuck process stands and end it; its training begins again in another."""
    there = NodeAffinitySchedulingStrategy(pulse.node_id, soft=False)
    examine: Any = ray.remote(num_cpus=0, max_retries=0)(stack_and_end)
    try:
        came = examine.options(scheduling_strategy=there).remote(pulse.pid)
        stack = ray.get(came, timeout=EXAMINE_S)
    except ray.exceptions.RayError as error:
        stack = f"its machine does not answer: {type(error).__name__}"
    say(
        f"training {pulse.number} (process {pulse.pid}) gives no sign of life; it is ended and "
        f"begins again. Its stack:\n{stack}"
    )
