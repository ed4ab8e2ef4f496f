"""A sweep from its job file to the registered best model: what the driver does."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob, load_text
from orchestrator.config.paths import resolve_places
from orchestrator.console import say
from orchestrator.data.datasets.sources import ensure_data
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import OrchestratorError, Stopped, TrainingFailed, UsageError
from orchestrator.redaction import mask
from orchestrator.runs import usage
from orchestrator.runs.driver import found_run, hurried, register, status_of, unique
from orchestrator.runs.record import RunRecord, driving
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.watchdog import monitored
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.live_table import LiveTable, told
from orchestrator.sweeps.records import Standing, Sweep, Trial, standings
from orchestrator.sweeps.status import Progress
from orchestrator.sweeps.store import SweepRecord, SweepStore, sweeps
from orchestrator.sweeps.trial_job import report_every, task_of, trial_job
from orchestrator.sweeps.trial_runner import Task
from orchestrator.training.loop import Outcome

SweepLauncher = Callable[
    [Job, SweepStore, Callable[[Trial], Task], Callable[[Progress], None], StopRequest],
    tuple[Sweep, bool],
]
"""Runs the trials of a sweep; see cluster.tune_runner.search."""


@dataclass(frozen=True)
class _Begun:
    """A sweep that is to be carried out."""

    store: SweepStore
    record: SweepRecord
    loaded: LoadedJob = field(repr=False)
    job: Job = field(repr=False)
    """With absolute places."""
    run: tracking.RunRef
    """The parent of the trainings' runs."""


def run_sweep(loaded: LoadedJob, launcher: SweepLauncher, *, resume: bool | None = None) -> None:
    """Search as the job's sweep block says; says on stderr what it does and where to look.

    Args:
        launcher: what runs the trials, such as cluster.tune_runner.search.
        resume: go on with the newest sweep of this job that did not finish; False, start a new
            one; None, go on only with one whose driver was lost.

    Raises:
        OrchestratorError: with the exit code that says what went wrong.
    """
    job = resolve_places(loaded.job)
    ensure_data(job.data, say)
    found = None if resume is False else _to_go_on_with(loaded, job, resume)
    if found is not None:
        say(f"going on with sweep {found.name}; --no-resume starts a new one")
        resume_sweep(found, launcher)
        return
    _carry_out(_new_sweep(loaded, job), launcher, going_on=False)


def resume_sweep(store: SweepStore, launcher: SweepLauncher) -> None:
    """Go on with a sweep that was lost or stopped, with the job file that it began with.

    Raises:
        UsageError: there is none, it has finished, or someone drives it.
    """
    record = store.record()
    if store.state() == "finished":
        raise UsageError(
            f"sweep {store.name} has finished; look at it with `orchestrator sweep report "
            f"{store.name}`"
        )
    loaded = load_text(record.text, Path(record.file_name), record.overrides)
    job = resolve_places(loaded.job)
    job = job.model_copy(update={"storage": store.storage.uri})
    ensure_data(job.data, say)
    digest = open_set(job.data.train).digest
    if digest != record.data_digest:
        raise UsageError(
            f"sweep {store.name} cannot go on: its training set has changed, digest "
            f"{record.data_digest[:12]} -> {digest[:12]}; start a new sweep"
        )
    run = tracking.RunRef(
        job.tracking.uri, record.experiment_id, record.mlflow_run_id, job.tracking.retry_timeout_s
    )
    store.forget_stop()
    _carry_out(_Begun(store, record, loaded, job, run), launcher, going_on=True)


def _to_go_on_with(loaded: LoadedJob, job: Job, resume: bool | None) -> SweepStore | None:
    """The newest sweep of this very job that was lost, or if ``resume`` that did not finish."""
    wanted = ("lost", "stopped") if resume else ("lost",)
    rendered = loaded.render()
    for store in reversed(list(sweeps(open_storage(job.storage)))):
        record = store.record()
        if record.job == job.name and record.rendered == rendered and store.state() in wanted:
            return store
    if resume:
        say(f"no sweep of {job.name} is unfinished in {loaded.shown('storage')}: starting one")
    return None


def _new_sweep(loaded: LoadedJob, job: Job) -> _Begun:
    """A sweep of its own; MLflow has its parent run, the storage nothing so far."""
    assert job.sweep is not None
    packed, name, rendered = open_set(job.data.train), unique(job.name), loaded.render()
    total = job.train.total_images(packed.num_samples)
    run = tracking.start_run(
        job,
        rendered=rendered,
        text=loaded.text,
        file_name=loaded.path.name,
        digest=packed.digest,
        run_name=name,
        tags={"sweep": name},
    )
    record = SweepRecord(
        name=name,
        job=job.name,
        file_name=str(loaded.path),
        text=mask(loaded.text),
        overrides=tuple(mask(text) for text in loaded.overrides),
        rendered=rendered,
        section=job.sweep.model_dump(mode="json", exclude_none=True),
        data_digest=packed.digest,
        total_images=total,
        report_every=report_every(job, total),
        tracking_uri=mask(run.tracking_uri),
        experiment_id=run.experiment_id,
        mlflow_run_id=run.run_id,
    )
    return _Begun(SweepStore(open_storage(job.storage), name), record, loaded, job, run)


def _carry_out(begun: _Begun, launcher: SweepLauncher, *, going_on: bool) -> None:
    store, run = begun.store, begun.run
    say(f"sweep {store.name}: its records are in {begun.loaded.shown('storage')}/{store.key}")
    say(f"metrics and pictures: {tracking.run_url(run)}")
    stop = StopRequest()
    with (
        driving(store.storage, store.key) as driver,
        monitored(run),
        status_of(run, stop, going_on=going_on),
        stop.heard_by(driver.stopping),
    ):
        store.announce(begun.record)
        try:
            sweep = _search(begun, launcher, stop)
        finally:
            _tell_usage(begun)
        best = _best(sweep)
        tracking.summarise(run, *_summary(sweep, best))
        _register_best(begun, sweep, best)
        store.finish()
    _tell(store.name, sweep, best)


def _search(begun: _Begun, launcher: SweepLauncher, stop: StopRequest) -> Sweep:
    """Carry it out to its end. Raises Stopped if someone stops it before."""
    with LiveTable() as live:
        sweep, stopped = launcher(
            begun.job,
            begun.store,
            lambda trial: task_of(trial, begun.record, begun.loaded, begun.job),
            live.show,
            stop,
        )
    if stopped:
        over = sum(trial.is_over for trial in sweep.trials)
        raise Stopped(
            f"the sweep was stopped with {over} of {sweep.num_trials} trainings over; go on with\n"
            f"  orchestrator sweep resume {begun.store.name}"
        )
    return sweep


def _tell_usage(begun: _Begun) -> None:
    """Write what all trainings have used so far to the sweep's own run in MLflow, and say it."""
    storage = begun.store.storage
    try:
        runs = {leg.run for trial in begun.store.trials() for leg in trial.legs}
        used = [part for run in sorted(runs) for part in usage.recorded(storage, run)]
        total = usage.total(used, begun.job.cost)
        tracking.summarise(hurried(begun.run), total.metrics(), {})
    except OrchestratorError as error:
        say(f"what the sweep has used could not be written: {error}")
    else:
        say(f"the trainings have used {total.words()}")


def _best(sweep: Sweep) -> Standing:
    """The best configuration. Raises TrainingFailed if none ended with a number."""
    found = standings(sweep)
    if not found:
        reasons = {trial.why for trial in sweep.trials if trial.why}
        raise TrainingFailed(
            f"no training of the sweep ended with a value of {', '.join(sweep.section.metrics)}"
            + "".join(f"\n  {reason}" for reason in sorted(reasons)[:3])
        )
    return found[0]


def _summary(sweep: Sweep, best: Standing) -> tuple[dict[str, float], dict[str, str]]:
    """What the sweep's own run in MLflow shows: the best configuration."""
    pairs = zip(sweep.section.metrics, best.means, strict=True)
    metrics = {f"best/{name}": mean for name, mean in pairs}
    values = {f"best/{name}": str(value) for name, value in best.values.items()}
    return metrics, {"best/training": str(best.trials[0]), **values}


def _register_best(begun: _Begun, sweep: Sweep, best: Standing) -> None:
    """Register the best configuration's first training, if the job wants it."""
    if begun.job.register_as is None:
        return
    trial = next(t for t in sweep.trials if t.number == best.trials[0])
    loaded = trial_job(begun.loaded, begun.record, trial)
    job = resolve_places(loaded.job)
    storage = begun.store.storage
    job = job.model_copy(update={"storage": storage.uri, "register_as": begun.job.register_as})
    record = RunRecord.read(storage, trial.legs[-1].run)
    setup = replace(found_run(loaded, job, record.data_digest, record), job=job)
    metrics = dict(zip(sweep.section.metrics, best.means, strict=True))
    version = register(setup, Outcome(trial.images_seen, True, metrics))
    if version is not None:
        say(f"registered {version.name} version {version.version} as {version.name}@candidate")


def _tell(name: str, sweep: Sweep, best: Standing) -> None:
    say(
        f"the best of {len(sweep.trials)} trainings is number {best.trials[0]}: {told(sweep, best)}"
    )
    say("next:")
    say(f"  orchestrator sweep report {name}")
    say(f"  orchestrator sweep best {name} > jobs/best.yaml")
