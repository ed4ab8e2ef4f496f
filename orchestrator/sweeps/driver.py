"""Driver of a sweep, from the job file to the registered best model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote

from orchestrator import tracking
from orchestrator.config.gpus import describe_gpus
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob, load_text
from orchestrator.console import log_info
from orchestrator.data.datasets.sources import ensure_data
from orchestrator.data.loading.compatibility import open_training_set
from orchestrator.data.loading.training_set import open_training_sets
from orchestrator.errors import OrchestratorError, Stopped, TrainingFailed, UsageError
from orchestrator.record_reader import DamagedRecord
from orchestrator.redaction import mask
from orchestrator.runs import usage
from orchestrator.runs.driver import (
    GpuSession,
    local_gpus,
    resume_run_context,
    unique_name,
    with_short_timeout,
)
from orchestrator.runs.evaluation_task import check_evaluation_sets
from orchestrator.runs.gatekeeper import check_gate
from orchestrator.runs.lease import hold_lease
from orchestrator.runs.lifecycle import track_status
from orchestrator.runs.record import RunRecord
from orchestrator.runs.registration import register_checkpoint
from orchestrator.runs.resolved_job import ResolvedJob, resolve_job
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.watchdog import watchdog
from orchestrator.sweeps.live_table import LiveTable, format_config
from orchestrator.sweeps.records import RankedConfig, Sweep, Trial, rank_configs
from orchestrator.sweeps.status import SweepStatus
from orchestrator.sweeps.store import SweepRecord, SweepStore, UnsupportedFormat, list_sweeps
from orchestrator.sweeps.trial_job import load_trial_job, make_task, resolve_report_every
from orchestrator.sweeps.trial_runner import TrialTask
from orchestrator.training.loop import Outcome

SweepLauncher = Callable[
    [Job, SweepStore, Callable[[Trial], TrialTask], Callable[[SweepStatus], None], StopRequest],
    tuple[Sweep, bool],
]
"""Runs the trials of a sweep; see cluster.tune_runner.run_trials."""


@dataclass(frozen=True)
class _SweepContext:
    """What the driver of a sweep works with."""

    store: SweepStore
    record: SweepRecord
    resolved: ResolvedJob = field(repr=False)
    run: tracking.RunRef
    """Parent of the trials' runs."""


def run_sweep(
    loaded: LoadedJob,
    launcher: SweepLauncher,
    *,
    resume: bool | None = None,
    gpus: GpuSession = local_gpus,
) -> None:
    """Run the job's sweep; progress, and where to find the results, are logged to stderr.

    Args:
        launcher: runs the trials, such as cluster.tune_runner.run_trials.
        resume: True resumes the newest unfinished sweep of this job; False starts a new one; None
            resumes only an orphaned one.
        gpus: counts the GPUs that the trials may use; see runs.driver.run_job.

    Raises:
        OrchestratorError: its class sets the exit code.
    """
    resolved = resolve_job(loaded)
    check_gate(resolved.job)
    ensure_data(resolved.job.data, log_info)
    with gpus(resolved.job) as num_gpus:
        found = None if resume is False else _find_unfinished(resolved, resume)
        if found is None:
            resolved = resolved.with_gpus(num_gpus)
            log_info(describe_gpus(resolved.job, num_gpus))
            _run_to_end(_create_sweep(resolved), launcher, resumed=False)
        else:
            log_info(f"resuming sweep {found.name}; --no-resume starts a new one")
            resume_sweep(found, launcher)


def resume_sweep(store: SweepStore, launcher: SweepLauncher) -> None:
    """Resume an orphaned or stopped sweep with the job file that it was started with.

    Its trials keep the kind of device that the sweep was started on.

    Raises:
        UsageError: there is no such sweep, it has finished, or it has a driver.
    """
    record = store.read_record()
    if store.state() == "finished":
        raise UsageError(
            f"sweep {store.name} has finished; see its results with `orchestrator sweep report "
            f"{store.name}`"
        )
    loaded = load_text(record.text, Path(record.file_name), record.overrides)
    resolved = resolve_job(loaded).with_gpus(0, record.rendered)
    resolved = resolved.with_sections(storage=store.storage.uri)
    data, tracked = resolved.job.data, resolved.job.tracking
    ensure_data(data, log_info)
    digest = open_training_sets(data).digest
    if digest != record.data_digest:
        raise UsageError(
            f"cannot resume sweep {store.name}: its training set has changed, digest "
            f"{record.data_digest[:12]} -> {digest[:12]}; start a new sweep"
        )
    ids = record.experiment_id, record.mlflow_run_id
    run = tracking.RunRef(tracked.uri, *ids, tracked.retry_timeout_s)
    store.clear_stop_request()
    _run_to_end(_SweepContext(store, record, resolved, run), launcher, resumed=True)


def _find_unfinished(resolved: ResolvedJob, resume: bool | None) -> SweepStore | None:
    """Find the newest sweep of exactly this job that is orphaned or, if ``resume``, stopped."""
    wanted = ("orphaned", "stopped") if resume else ("orphaned",)
    name = resolved.job.name
    for store in reversed(list(list_sweeps(resolved.storage()))):
        try:
            record = store.read_record()
        except (UnsupportedFormat, DamagedRecord) as error:
            if resume or isinstance(error, DamagedRecord):
                log_info(f"cannot resume sweep {store.name}: {error}")
            continue
        rendered = resolved.with_gpus(0, record.rendered).rendered
        is_same = record.job == name and record.rendered == rendered
        if is_same and store.state() in wanted:
            return store
    if resume:
        storage = resolved.loaded.display_place(resolved.job.storage, "storage")
        log_info(f"no unfinished sweep of {name} in {storage}: starting one")
    return None


def _create_sweep(resolved: ResolvedJob) -> _SweepContext:
    """Create a new sweep with its parent run in MLflow; the storage has nothing of it yet."""
    loaded, job = resolved.loaded, resolved.job
    assert job.sweep is not None
    train_set, name = open_training_set(job), unique_name(job.name)
    if job.evaluate is not None:
        check_evaluation_sets(job)
    total = job.train.total_images(train_set.num_samples)
    run = tracking.start_run(
        job,
        rendered=resolved.rendered,
        text=loaded.text,
        file_name=loaded.path.name,
        digest=train_set.digest,
        run_name=name,
        tags={"sweep": name},
    )
    record = SweepRecord(
        name=name,
        job=job.name,
        file_name=str(loaded.path),
        text=mask(loaded.text),
        overrides=tuple(mask(text) for text in loaded.overrides),
        rendered=resolved.rendered,
        section=job.sweep.model_dump(mode="json", exclude_none=True),
        data_digest=train_set.digest,
        total_images=total,
        report_every=resolve_report_every(job, total),
        tracking_uri=loaded.display("tracking", "uri"),
        experiment_id=run.experiment_id,
        mlflow_run_id=run.run_id,
    )
    return _SweepContext(SweepStore(resolved.storage(), name), record, resolved, run)


def _run_to_end(context: _SweepContext, launcher: SweepLauncher, *, resumed: bool) -> None:
    store, run = context.store, context.run
    folder = _shown_folder(context)
    log_info(f"sweep {store.name}: its records are in {folder}")
    log_info(f"metrics and sample grids: {tracking.run_url(run)}")
    stop = StopRequest()
    with (
        hold_lease(store.storage, store.key, must_be_unfinished=True) as lease,
        watchdog(run),
        track_status(run, stop, lease, resumed=resumed),
        stop.on_stop(lease.mark_stopping),
    ):
        lease.on_superseded, store.fence = stop.request, lease.fence
        store.create(context.record)
        try:
            sweep = _run_trials(context, launcher, stop)
        finally:
            _log_usage(context)
        lease.fence.check()
        best = _find_best(sweep)
        metrics = dict(zip(sweep.section.metrics, best.means, strict=True))
        params = {"trial": best.trials[0], **best.values}
        tracking.log_summary(
            run,
            {f"best/{name}": mean for name, mean in metrics.items()},
            {f"best/{name}": str(value) for name, value in params.items()},
        )
        _register_best(context, sweep, best, metrics)
        store.mark_finished()
    summary = f"trial {best.trials[0]}, {format_config(sweep, best)}"
    log_info(f"best of {len(sweep.trials)} trials: {summary}")
    log_info("next:")
    log_info(f"  orchestrator sweep report {quote(folder)}")
    log_info(f"  orchestrator sweep best {quote(folder)} > jobs/best.yaml")


def _run_trials(context: _SweepContext, launcher: SweepLauncher, stop: StopRequest) -> Sweep:
    """Run all trials. Raises Stopped if someone stops the sweep."""
    with LiveTable() as live:
        sweep, stopped = launcher(
            context.resolved.job,
            context.store,
            partial(make_task, record=context.record, sweep=context.resolved),
            live.show,
            stop,
        )
    if stopped:
        num_over = sum(trial.is_over for trial in sweep.trials)
        raise Stopped(
            f"the sweep was stopped after {num_over} of {sweep.num_trials} trials; resume it with\n"
            f"  orchestrator sweep resume {quote(_shown_folder(context))}"
        )
    return sweep


def _shown_folder(context: _SweepContext) -> str:
    """Return the sweep's folder in the storage, as printed commands name it."""
    storage = context.store.storage.uri
    return f"{context.resolved.loaded.display_place(storage, 'storage')}/{context.store.key}"


def _log_usage(context: _SweepContext) -> None:
    """Log what all trials have used so far, to the sweep's MLflow run and to stderr."""
    storage = context.store.storage
    try:
        runs = {segment.run for trial in context.store.trials() for segment in trial.segments}
        used = [part for run in sorted(runs) for part in usage.read_usage(storage, run)]
        total = usage.sum_usage(used, context.resolved.job.cost)
        tracking.log_summary(with_short_timeout(context.run), total.metrics(), {})
    except OrchestratorError as error:
        log_info(f"could not log the usage of the sweep: {error}")
    else:
        log_info(f"the trials have used {total.format()}")


def _find_best(sweep: Sweep) -> RankedConfig:
    """Find the best configuration. Raises TrainingFailed if none ended with a finite metric."""
    ranked = rank_configs(sweep)
    if not ranked:
        reasons = {trial.reason for trial in sweep.trials if trial.reason}
        raise TrainingFailed(
            f"no trial of the sweep ended with a finite {', '.join(sweep.section.metrics)}"
            + "".join(f"\n  {reason}" for reason in sorted(reasons)[:3])
        )
    return ranked[0]


def _register_best(
    context: _SweepContext, sweep: Sweep, best: RankedConfig, metrics: dict[str, float]
) -> None:
    """Register the model of the best configuration's first trial, if the job has ``register``."""
    register_as = context.resolved.job.register_as
    if register_as is None:
        return
    trial = next(t for t in sweep.trials if t.number == best.trials[0])
    storage = context.store.storage
    resolved = resolve_job(load_trial_job(context.resolved.loaded, context.record, trial))
    resolved = resolved.with_sections(storage=storage.uri, register_as=register_as)
    record = RunRecord.read(storage, trial.segments[-1].run)
    run_context = resume_run_context(resolved, record.data_digest, record)
    version = register_checkpoint(run_context, Outcome(trial.images_seen, True, metrics))
    if version is not None:
        log_info(f"registered {version.name} version {version.version} as {version.name}@candidate")
