"""A job from its file to the registered model: the driver, and what each worker assembles."""

import datetime
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.base import Translates, model_module
from orchestrator import registry, tracking
from orchestrator.checkpoints import Checkpoints
from orchestrator.data.shards import open_set
from orchestrator.data.sources import ensure_data
from orchestrator.data.stream import ShardStream
from orchestrator.errors import EnvironmentProblem, OrchestratorError, Stopped, UsageError
from orchestrator.forking import forked
from orchestrator.going_on import lost_run
from orchestrator.job import Job
from orchestrator.jobfile import LoadedJob
from orchestrator.monitor import monitored
from orchestrator.pictures import tile
from orchestrator.places import resolve_places
from orchestrator.progress import ProgressDisplay, Report, say
from orchestrator.redaction import mask
from orchestrator.runs import RunRecord, check_same, driving, newest_unfinished
from orchestrator.stopping import StopRequest
from orchestrator.storage import open_storage
from orchestrator.training.loop import Outcome, train
from orchestrator.training.worker import Silence, Worker
from orchestrator.uploads import UploadedCheckpoints


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to know of a run; it travels to other machines."""

    name: str
    """Name of the run, unique; its folder in the storage."""
    job: Job = field(repr=False)
    """With absolute places."""
    rendered: str
    """The job as YAML, without secrets."""
    run: tracking.RunRef
    data_digest: str
    """Of the training set."""

    @property
    def record(self) -> RunRecord:
        """What the storage is to know of the run."""
        run = self.run
        return RunRecord(self.name, self.job.name, run.run_id, run.experiment_id, self.data_digest)

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        about = {"run": self.name, "job": self.job.name, "mlflow_run_id": self.run.run_id}
        storage = open_storage(self.job.storage)
        return Checkpoints(storage, f"{self.name}/checkpoints", self.rendered, about)

    def check_storage(self) -> None:
        """Raise EnvironmentProblem if this process does not see what the driver has put there."""
        if not open_storage(self.job.storage).exists(self.record.key):
            raise EnvironmentProblem(
                f"a worker on {socket.gethostname()} does not see {mask(self.job.storage)}/"
                f"{self.record.key}, which the driver wrote; use a folder that all machines "
                "mount, or s3://bucket/prefix, as storage"
            )


Show = Callable[[Report], None]
FAILED_CLOSE_S = 60.0


def run_job(
    loaded: LoadedJob, *, local: bool, resume: bool | None = None, fork: str | None = None
) -> None:
    """Fetch the data if need be, train, register; says on stderr what it does and where to look.

    Args:
        local: train in this process with one worker, without Ray.
        resume: go on with the newest run of this job that did not finish, if there is one; False,
            start a new one; None, go on only with one whose driver was lost.
        fork: a run or a checkpoint that the new run starts from.

    Raises:
        OrchestratorError: with the exit code that says what went wrong.
    """
    if fork is not None and resume:
        raise UsageError("--fork starts a new run and --resume goes on with one: give one of them")
    job = resolve_places(loaded.job)
    if local:
        job = job.model_copy(update={"cluster": job.cluster.model_copy(update={"workers": 1})})
    ensure_data(job.data, say)
    storage, packed = open_storage(job.storage), open_set(job.data.train)
    start = forked(fork, job, packed.num_samples) if fork is not None else None
    found, last_words = (
        (None, None) if start else _to_go_on_with(loaded, job, packed.digest, resume)
    )
    if found is None:
        setup = _new_run(loaded, job, packed.digest, start.tags if start else {})
    else:
        setup = _found_run(loaded, job, packed.digest, found)
    name, run = setup.name, setup.run
    say(f"run {name}: checkpoints in {loaded.shown('storage')}/{name}")
    say(f"metrics and pictures: {tracking.run_url(run)}")
    stop = StopRequest()
    with (
        driving(storage, name, last_words) as driver,
        monitored(run),
        _status(run, stop, going_on=found is not None),
        stop.heard_by(driver.stopping),
    ):
        if start is not None:  # before the record: who finds the run must find where it starts
            setup.checkpoints().save(start.state)
        setup.record.announce(storage, setup.rendered)
        outcome = _train(setup, stop, local=local)
        version = _register(setup, outcome)
        setup.record.finish(storage)
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


def _new_run(loaded: LoadedJob, job: Job, digest: str, tags: Mapping[str, str]) -> Setup:
    name = f"{job.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    rendered = loaded.render()
    run = tracking.start_run(
        job,
        rendered=rendered,
        text=loaded.text,
        file_name=loaded.path.name,
        digest=digest,
        run_name=name,
        tags=tags,
    )
    return Setup(name, job, rendered, run, digest)


def _found_run(loaded: LoadedJob, job: Job, digest: str, found: RunRecord) -> Setup:
    """The run that the storage knows, with this job. Raises UsageError if it is another job's."""
    rendered = loaded.render()
    check_same(open_storage(job.storage), found, rendered, digest)
    address, patience_s = job.tracking.uri, job.tracking.patience_s
    run = tracking.RunRef(address, found.experiment_id, found.mlflow_run_id, patience_s)
    return Setup(found.run, job, rendered, run, digest)


def train_worker(
    setup: Setup,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    report: Show,
    should_stop: Callable[[], bool] = lambda: False,
    doing: Callable[[str], None] = lambda what: None,
) -> Outcome:
    """One worker of a run: the data, the checkpoints and, on rank 0, the tracker, around the loop.

    Every rank calls it; with more than one the process group must exist.
    """
    setup.check_storage()
    stream = ShardStream(setup.job, rank, world_size, pin_memory=device.type == "cuda")
    total = setup.job.train.total_images(stream.num_samples)
    with _recording(setup, total, report) if rank == 0 else nullcontext(Silence()) as recorder:
        checkpoints = UploadedCheckpoints(setup.checkpoints(), setup.job.data.patience_s)
        worker = Worker(recorder, checkpoints, device, rank, world_size, should_stop, doing)
        try:
            return train(setup.job, stream, worker)
        finally:
            # `train` has raised it, or what ended it matters more.
            with suppress(OrchestratorError):
                checkpoints.flush()


class _Recorder:
    """Sends what the training tells to MLflow and to the progress display."""

    def __init__(self, tracker: tracking.Tracker, total: int, report: Show) -> None:
        self.tracker, self.total, self.report = tracker, total, report
        self.latest: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        self.tracker.metrics(values, images_seen)
        self.latest.update(values)
        self.report(Report(images_seen, self.total, dict(self.latest)))

    def grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        self.tracker.picture(key, tile(rows), images_seen)

    def text(self, name: str, text: str, images_seen: int) -> None:
        self.tracker.text(name, text, images_seen)


@contextmanager
def _recording(setup: Setup, total: int, report: Show) -> Iterator[_Recorder]:
    spool = Path(tempfile.gettempdir(), f"orchestrator-{os.getuid()}", "spool", setup.name)
    tracker = tracking.Tracker(setup.run, spool)
    try:
        yield _Recorder(tracker, total, report)
    except BaseException:
        # The training may begin again, and sends from the same spool if that is on this machine.
        tracker.close(min(FAILED_CLOSE_S, setup.run.patience_s))
        raise
    tracker.close()


def _train(setup: Setup, stop: StopRequest, *, local: bool) -> Outcome:
    with ProgressDisplay() as display:
        if local:
            outcome = _train_here(setup, display.show, stop)
        else:
            from orchestrator.cluster.train import train_on_ray

            outcome = train_on_ray(setup, display.show, stop)
    if not outcome.finished:
        raise Stopped(
            f"stopped after {outcome.images_seen:,} images; the checkpoint is in "
            f"{mask(setup.job.storage)}/{setup.name}"
        )
    return outcome


def _train_here(setup: Setup, show: Show, stop: StopRequest) -> Outcome:
    """Train in this process."""
    if setup.job.cluster.gpus_per_worker and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "cluster.gpus_per_worker is 1 and torch finds no GPU here; check the driver with "
            "`nvidia-smi`, or train on the CPU with --set cluster.gpus_per_worker=0"
        )
    device = torch.device("cuda" if setup.job.cluster.gpus_per_worker else "cpu")
    return train_worker(
        setup, rank=0, world_size=1, device=device, report=show, should_stop=lambda: stop.asked
    )


@contextmanager
def _status(run: tracking.RunRef, stop: StopRequest, *, going_on: bool) -> Iterator[None]:
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


def _register(setup: Setup, outcome: Outcome) -> registry.RegisteredVersion | None:
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
        patience_s=setup.run.patience_s,
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
