"""A job from its file to the registered model: what the driver does."""

import datetime
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.config.paths import resolve_places
from orchestrator.console import ProgressDisplay, say
from orchestrator.data.datasets.sources import ensure_data
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import EnvironmentProblem, OrchestratorError, Stopped, UsageError
from orchestrator.models.base import Translates, model_module
from orchestrator.redaction import mask
from orchestrator.registry import registry
from orchestrator.runs.fork import forked
from orchestrator.runs.record import RunRecord, check_same, driving, newest_unfinished
from orchestrator.runs.resume import lost_run
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.watchdog import monitored
from orchestrator.runs.worker_setup import RunContext, ReportCallback, WorkerCallbacks, train_worker
from orchestrator.storage.open import open_storage
from orchestrator.training.loop import Outcome
from orchestrator.training.state import TrainState

HURRY_S = 10.0


def run_job(
    loaded: LoadedJob,
    launcher: "Launcher | None" = None,
    *,
    resume: bool | None = None,
    fork: str | None = None,
) -> None:
    """Fetch the data if need be, train, register; says on stderr what it does and where to look.

    Args:
        launcher: what starts the workers, such as cluster.ray_trainer.train_on_ray; None, train
            in this process with one worker.
        resume: go on with the newest run of this job that did not finish, if there is one; False,
            start a new one; None, go on only with one whose driver was lost.
        fork: a run or a checkpoint that the new run starts from.

    Raises:
        OrchestratorError: with the exit code that says what went wrong.
    """
    if fork is not None and resume:
        raise UsageError(
            "--init-from starts a new run and --resume goes on with one: give one of them"
        )
    job = resolve_places(loaded.job)
    if launcher is None:
        job = job.model_copy(update={"cluster": job.cluster.model_copy(update={"workers": 1})})
    ensure_data(job.data, say)
    packed = open_set(job.data.train)
    start = forked(fork, job, packed.num_samples) if fork is not None else None
    found, last_words = (
        (None, None) if start else _to_go_on_with(loaded, job, packed.digest, resume)
    )
    if found is None:
        setup = new_run(loaded, job, packed.digest, unique(job.name), start.tags if start else {})
    else:
        setup = found_run(loaded, job, packed.digest, found)
    say(f"run {setup.name}: checkpoints in {loaded.shown('storage')}/{setup.name}")
    say(f"metrics and pictures: {tracking.run_url(setup.run)}")
    stop = StopRequest()
    with carrying_out(
        setup, stop, last_words, going_on=found is not None, start=start.state if start else None
    ):
        with ProgressDisplay() as display:
            outcome = train_with(setup, display.show, stop, launcher)
        version = register(setup, outcome)
    say(f"trained on {outcome.images_seen:,} images; {_validation(outcome.metrics)}")
    if version is not None:
        model = f"{version.name}@candidate"
        say(f"registered {version.name} version {version.version} as {model}; next:")
        given = "--num-images 64"
        if issubclass(model_module(job.model.name).Model, Translates):
            given = "--input DRAWINGS"
        say(f"  orchestrator sample {model} {given} --output PICTURES")
        say(f"  orchestrator models pull {model} DEST")


def _to_go_on_with(
    loaded: LoadedJob, job: Job, digest: str, resume: bool | None
) -> tuple[RunRecord | None, bytes | None]:
    """The run to go on with, and its lost driver's last words if they are known."""
    storage = open_storage(job.storage)
    if resume is None:
        return lost_run(storage, job.name, loaded.render(), digest) or (None, None)
    found = newest_unfinished(storage, job.name) if resume else None
    if resume and found is None:
        say(f"no run of {job.name} is unfinished in {loaded.shown('storage')}: starting one")
    return found, None


def unique(name: str) -> str:
    """A name that no other run or sweep has, and that sorts by time."""
    return f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_run(
    loaded: LoadedJob,
    job: Job,
    digest: str,
    name: str,
    tags: Mapping[str, str],
    shown_as: str | None = None,
) -> RunContext:
    """A run of its own called ``name``, in MLflow so far, which shows it as ``shown_as``."""
    rendered = loaded.render()
    run = tracking.start_run(
        job,
        rendered=rendered,
        text=loaded.text,
        file_name=loaded.path.name,
        digest=digest,
        run_name=shown_as or name,
        tags=tags,
    )
    return RunContext(name, job, rendered, run, digest)


def found_run(loaded: LoadedJob, job: Job, digest: str, found: RunRecord) -> RunContext:
    """The run that the storage knows, with this job. Raises UsageError if it is another job's."""
    rendered = loaded.render()
    check_same(open_storage(job.storage), found, rendered, digest)
    address, retry_timeout_s = job.tracking.uri, job.tracking.retry_timeout_s
    run = tracking.RunRef(address, found.experiment_id, found.mlflow_run_id, retry_timeout_s)
    return RunContext(found.run, job, rendered, run, digest)


Launcher = Callable[[RunContext, ReportCallback, StopRequest], Outcome]
"""Starts a run's workers and waits for them; see cluster.ray_trainer.train_on_ray."""


@contextmanager
def carrying_out(
    setup: RunContext,
    stop: StopRequest,
    last_words: bytes | None = None,
    *,
    going_on: bool,
    start: TrainState | None = None,
) -> Iterator[None]:
    """Be the driver of a run within the block, which trains; the run has its status afterwards.

    Args:
        last_words: of a lost driver, see ``runs.driving``.
        going_on: whether the run was begun earlier.
        start: what a new run begins with.
    """
    storage = open_storage(setup.job.storage)
    with (
        driving(storage, setup.name, last_words) as driver,
        monitored(setup.run),
        status_of(setup.run, stop, going_on=going_on),
        stop.heard_by(driver.stopping),
    ):
        if start is not None:  # before the record: who finds the run must find where it starts
            setup.checkpoints().save(start)
        setup.record.announce(storage, setup.rendered)
        yield
        setup.record.finish(storage)


def train_with(setup: RunContext, show: ReportCallback, stop: StopRequest, launcher: Launcher | None) -> Outcome:
    """Train, in this process without ``launcher``. Raises Stopped if it was told to stop."""
    outcome = (launcher or train_here)(setup, show, stop)
    _tell_usage(setup, outcome.images_seen)
    if not outcome.finished:
        raise Stopped(
            f"stopped after {outcome.images_seen:,} images; the checkpoint is in "
            f"{mask(setup.job.storage)}/{setup.name}"
        )
    return outcome


def _tell_usage(setup: RunContext, images_seen: int) -> None:
    """Write and say what the run has used, its end included; the points have most of it."""
    try:
        usage = setup.usage()
        tracking.summarise(hurried(setup.run), usage.metrics(), {}, step=images_seen)
    except OrchestratorError as error:
        say(f"what the run has used could not be written: {error}")
    else:
        say(f"the run has used {usage.words()}")


def hurried(run: tracking.RunRef) -> tracking.RunRef:
    """The run, of which something is to be written that is not worth a long wait."""
    return replace(run, retry_timeout_s=min(run.retry_timeout_s, HURRY_S))


def train_here(
    setup: RunContext,
    show: ReportCallback,
    stop: StopRequest,
    doing: Callable[[str], None] = lambda what: None,
    saved: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train in this process; ``doing`` and ``saved`` as in Ties."""
    if setup.job.cluster.gpus_per_worker and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "cluster.gpus_per_worker is 1 and torch finds no GPU here; check the driver with "
            "`nvidia-smi`, or train on the CPU with --set cluster.gpus_per_worker=0"
        )
    device = torch.device("cuda" if setup.job.cluster.gpus_per_worker else "cpu")
    ties = WorkerCallbacks(show, lambda: stop.asked, doing, saved)
    return train_worker(setup, ties, rank=0, world_size=1, device=device)


@contextmanager
def status_of(run: tracking.RunRef, stop: StopRequest, *, going_on: bool) -> Iterator[None]:
    """Give the MLflow run the status of what happens inside; ``going_on``, it has one already."""

    def killed() -> None:
        tracking.finish_run(run, "KILLED")

    if going_on:
        tracking.reopen_run(run)
    try:
        # `ray job stop` gives three seconds from the signal on: what must not be lost goes first.
        with stop.listening(), stop.heard_by(killed):
            yield
    except (KeyboardInterrupt, Stopped):
        killed()
        raise
    except BaseException:
        tracking.finish_run(run, "FAILED")
        raise
    tracking.finish_run(run, "FINISHED")


def register(setup: RunContext, outcome: Outcome) -> registry.RegisteredVersion | None:
    """Register the newest checkpoint's model if the job wants it; the version."""
    job = setup.job
    if job.register_as is None:
        return None
    checkpoints = setup.checkpoints()
    newest = checkpoints.names()[-1]
    say(f"registering {mask(job.storage)}/{setup.name}/checkpoints/{newest}")
    examples = ShardStream(job, rank=0, world_size=1).examples(2)
    return registry.register(
        setup.run,
        job.register_as.name,
        job.model,
        checkpoints.snapshot(newest),
        example=examples.images if examples.condition is None else examples.condition,
        retry_timeout_s=setup.run.retry_timeout_s,
        notes={
            **outcome.metrics,
            "job": job.name,
            "images_seen": outcome.images_seen,
            "data_digest": setup.data_digest,
            "checkpoint": newest,
            "images_per_worker": job.images_per_pass,
        },
    )


def _validation(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()) or "no validation"
