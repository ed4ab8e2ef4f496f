"""Run a job from its file to the registered model, as its driver."""

import datetime
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch

from orchestrator import tracking
from orchestrator.config.gpus import check_evaluation_gpu, describe_gpus
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.console import ProgressDisplay, log_info
from orchestrator.data.datasets.sources import ensure_data
from orchestrator.data.loading.compatibility import open_training_set
from orchestrator.errors import (
    EnvironmentProblem,
    OrchestratorError,
    Stopped,
    UsageError,
)
from orchestrator.evaluation.metric_names import EVALUATION
from orchestrator.redaction import mask
from orchestrator.runs.evaluation_process import EvaluationLauncher, EvaluationProcess
from orchestrator.runs.evaluation_task import check_evaluation_sets
from orchestrator.runs.fork import fork_run
from orchestrator.runs.gatekeeper import check_gate
from orchestrator.runs.lifecycle import run_lifecycle
from orchestrator.runs.record import RunRecord, newest_unfinished_run, read_job
from orchestrator.runs.registration import log_next_steps, register_checkpoint
from orchestrator.runs.resolved_job import ResolvedJob, resolve_job
from orchestrator.runs.resume import check_same_job, find_orphaned_run
from orchestrator.runs.run_context import ReportCallback, RunContext, WorkerCallbacks
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.worker_setup import train_worker
from orchestrator.training.loop import Outcome

Launcher = Callable[[RunContext, ReportCallback, StopRequest], Outcome]
"""Starts a run's workers and waits for them, such as cluster.ray_trainer.train_on_ray."""


GpuSession = Callable[[Job], AbstractContextManager[int]]
"""Opens what a job runs on for the time of a block, and gives its number of GPUs."""


@contextmanager
def local_gpus(job: Job) -> Iterator[int]:
    """Give the number of GPUs that torch finds on this machine."""
    yield torch.cuda.device_count() if torch.cuda.is_available() else 0


def run_job(
    loaded: LoadedJob,
    launcher: Launcher | None = None,
    *,
    resume: bool | None = None,
    init_from: str | None = None,
    restart_from_scratch: bool = False,
    gpus: GpuSession = local_gpus,
) -> None:
    """Fetch the data if needed, train, and register the model; log progress on stderr.

    Args:
        launcher: starts the workers; None trains in this process with one worker.
        resume: True resumes the newest unfinished run of this job, or starts one if there is none;
            False starts a new one; None resumes only an orphaned run.
        init_from: a run or a checkpoint to start the new run from.
        restart_from_scratch: start a resumed run again at image 0 if all its checkpoints are
            damaged or gone.
        gpus: counts the GPUs that the job may use, such as cluster.ray_session.cluster_gpus.

    Raises:
        OrchestratorError: its exit code tells what went wrong.
    """
    if init_from is not None and resume:
        raise UsageError(
            "--init-from starts a new run and --resume resumes an existing one; use one of them"
        )
    if restart_from_scratch and (resume is False or init_from is not None):
        other = "--no-resume" if init_from is None else "--init-from"
        raise UsageError(
            f"--restart-from-scratch is for a run that is resumed, and {other} starts a new one; "
            "use one of them"
        )
    resolved = resolve_job(loaded)
    if launcher is None:
        cluster = resolved.job.cluster.model_copy(update={"workers": 1})
        resolved = resolved.with_sections(cluster=cluster)
    check_gate(resolved.job)
    ensure_data(resolved.job.data, log_info)
    with gpus(resolved.job) as num_gpus:
        _run(resolved, launcher, resume, init_from, num_gpus, restart_from_scratch)


def _run(
    resolved: ResolvedJob,
    launcher: Launcher | None,
    resume: bool | None,
    init_from: str | None,
    num_gpus: int,
    restart_from_scratch: bool,
) -> None:
    """Train and register the model, with the data in place and the cluster connected."""
    job = resolved.job
    packed = open_training_set(job)  # before MLflow gets a run, which would be an empty one
    if job.evaluate is not None:
        check_evaluation_sets(job)
        check_evaluation_gpu(job, num_gpus)
    fork = None if init_from is None else fork_run(init_from, job, packed.num_samples)
    found = heartbeat = None
    if fork is None:
        found, heartbeat = _find_run_to_resume(resolved, packed.digest, resume)
    before = None if found is None else read_job(resolved.storage(), found.run)
    resolved = resolved.with_gpus(num_gpus, before)
    job = resolved.job
    log_info(describe_gpus(job, num_gpus))
    if found is None:
        name, tags = unique_name(job.name), fork.tags if fork else {}
        context = create_run_context(resolved, packed.digest, name, tags)
    else:
        context = resume_run_context(resolved, packed.digest, found)
    shown = resolved.loaded.display_place(job.storage, "storage")
    log_info(f"run {context.name}: checkpoints in {shown}/{context.name}")
    log_info(f"metrics and images: {tracking.run_url(context.run)}")
    stop, start = StopRequest(), fork.state if fork else None
    resumed = found is not None
    with run_lifecycle(
        context, stop, heartbeat, resumed=resumed, must_be_unfinished=resumed, start=start
    ) as context:
        if found is not None and restart_from_scratch:
            _restart_if_none_is_left(context)
        with ProgressDisplay() as display:
            outcome = launch_training(context, display.show, stop, launcher)
        context.wait_out(context.check_fence)
        if job.register_as is not None:
            context.wait_out(lambda: context.record.mark_trained(context.storage()))
        version = register_checkpoint(context, outcome)
    _log_metrics(outcome)
    if version is not None:
        log_next_steps(version, job)


def _log_metrics(outcome: Outcome) -> None:
    """Log the metrics of the last validation, and of the last evaluation in a line of its own."""
    values = {name: f"{name} {value:.4f}" for name, value in outcome.metrics.items()}
    evaluation = [values.pop(name) for name in list(values) if name.startswith(EVALUATION)]
    validation = ", ".join(values.values()) or "no validation"
    log_info(f"trained on {outcome.images_seen:,} images; {validation}")
    if evaluation:
        log_info(", ".join(evaluation))


def _restart_if_none_is_left(context: RunContext) -> None:
    """Let a run without a valid checkpoint start again at image 0."""
    checkpoints = context.checkpoints()
    if checkpoints.latest() is None:
        checkpoints.forget_saved()
        log_info(f"run {context.name} has no valid checkpoint: it starts again at image 0")


def _find_run_to_resume(
    resolved: ResolvedJob, digest: str, resume: bool | None
) -> tuple[RunRecord | None, bytes | None]:
    """Find the run to resume, and its driver's last heartbeat if the run is orphaned."""
    storage, name = resolved.storage(), resolved.job.name
    if resume is None:
        return find_orphaned_run(storage, name, resolved.rendered, digest) or (None, None)
    found = newest_unfinished_run(storage, name) if resume else None
    if resume and found is None:
        shown = resolved.loaded.display_place(resolved.job.storage, "storage")
        log_info(f"no unfinished run of {name} in {shown}: starting a new one")
    return found, None


def unique_name(name: str) -> str:
    """Make a name that no other run or sweep has and that sorts by time."""
    return f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def create_run_context(
    resolved: ResolvedJob,
    digest: str,
    name: str,
    tags: Mapping[str, str],
    display_name: str | None = None,
) -> RunContext:
    """Create a new run called ``name`` in MLflow; the storage has nothing of it yet.

    Args:
        digest: of the training set.
        display_name: its name in MLflow, by default ``name``.
    """
    run = tracking.start_run(
        resolved.job,
        rendered=resolved.rendered,
        text=resolved.loaded.text,
        file_name=resolved.loaded.path.name,
        digest=digest,
        run_name=display_name or name,
        tags=tags,
    )
    return RunContext(name, resolved.job, resolved.rendered, run, digest)


def resume_run_context(resolved: ResolvedJob, digest: str, record: RunRecord) -> RunContext:
    """Make the context of a run from its record. Raises UsageError if the job has changed."""
    check_same_job(resolved.storage(), record, resolved.rendered, digest)
    settings = resolved.job.tracking
    run = tracking.RunRef(
        settings.uri, record.experiment_id, record.mlflow_run_id, settings.retry_timeout_s
    )
    return RunContext(record.run, resolved.job, resolved.rendered, run, digest)


def launch_training(
    context: RunContext, show: ReportCallback, stop: StopRequest, launcher: Launcher | None
) -> Outcome:
    """Train, in this process without ``launcher``. Raises Stopped if it was asked to stop."""
    outcome = (launcher or train_in_process)(context, show, stop)
    context.wait_out(context.check_fence)
    _log_usage(context, outcome.images_seen)
    if not outcome.finished:
        raise Stopped(
            f"stopped after {outcome.images_seen:,} images; the checkpoint is in "
            f"{mask(context.job.storage)}/{context.name}"
        )
    return outcome


def _log_usage(context: RunContext, images_seen: int) -> None:
    """Log what the run has used; the metrics have all but its last seconds already."""
    try:
        usage, run = context.usage(), with_short_timeout(context.run)
        tracking.log_summary(run, usage.metrics(), {}, step=images_seen)
    except OrchestratorError as error:
        log_info(f"could not write what the run has used: {error}")
    else:
        log_info(f"the run has used {usage.format()}")


def with_short_timeout(run: tracking.RunRef) -> tracking.RunRef:
    """Limit the retries for what is not worth a long wait."""
    return replace(run, retry_timeout_s=min(run.retry_timeout_s, 10.0))


def train_in_process(
    context: RunContext,
    show: ReportCallback,
    stop: StopRequest,
    on_activity: Callable[[str], None] = lambda activity: None,
    on_saved: Callable[[], None] = lambda: None,
    launch_evaluation: EvaluationLauncher = EvaluationProcess,
) -> Outcome:
    """Train in this process; ``on_activity`` and ``on_saved`` as in WorkerCallbacks."""
    if context.job.cluster.gpus and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "cluster.gpus_per_worker is 1 and torch finds no GPU here; check the driver with "
            "`nvidia-smi`, or train on the CPU with --set cluster.gpus_per_worker=0"
        )
    device = torch.device("cuda" if context.job.cluster.gpus else "cpu")
    callbacks = WorkerCallbacks(show, lambda: stop.requested, on_activity, on_saved)
    return train_worker(
        context,
        callbacks,
        rank=0,
        world_size=1,
        device=device,
        launch_evaluation=launch_evaluation,
    )
