"""Jobs of a sweep's trials, made from the sweep's own job with overrides as of ``--set``."""

import math

from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob, load_text
from orchestrator.config.overrides import to_override, to_overrides
from orchestrator.runs.resolved_job import ResolvedJob, resolve_job
from orchestrator.sweeps.records import Trial
from orchestrator.sweeps.store import SweepRecord
from orchestrator.sweeps.trial_runner import TrialTask

RESULTS_PER_TRIAL = 20
"""Intermediate results of a complete trial, by default."""
POINTS_PER_RESULT = 10
"""Logged points that an intermediate result averages, by default: about so many."""
GRIDS_PER_TRIAL = 10
"""Sample grids of a complete trial, by default; a trial stopped at its first rung has one too."""


def resolve_report_every(job: Job, total: int) -> int:
    """Compute the images between two intermediate results.

    By default it is a multiple of the given logging intervals, so that metrics are logged at the
    very step of each result.
    """
    sweep, train = job.sweep, job.train
    assert sweep is not None
    kinds = {name.startswith("validation/") for name in sweep.metrics}
    given = [train.validate_every if kind else train.log_every for kind in kinds]
    step = math.lcm(*(every for every in given if every is not None))
    default = -(-max(train.batch_size, total // RESULTS_PER_TRIAL) // step) * step
    return min(total, sweep.report_every or default)


def load_trial_job(loaded: LoadedJob, record: SweepRecord, trial: Trial) -> LoadedJob:
    """Load the job of one trial. Raises JobFileError if its values are invalid together."""
    seed = loaded.job.train.seed + trial.seed_index
    overrides = (
        *loaded.overrides,
        to_override("cluster.gpus_per_worker", loaded.job.cluster.gpus_per_worker),
        *("sweep=null", "register=null", f"train.seed={seed}"),
        *_default_intervals(loaded.job, record),
        *to_overrides(trial.values),
    )
    return load_text(loaded.text, loaded.path, overrides)


def make_task(trial: Trial, record: SweepRecord, sweep: ResolvedJob) -> TrialTask:
    """Make the task for the process that runs a trial of the job ``sweep``."""
    resolved = resolve_job(load_trial_job(sweep.loaded, record, trial))
    tracking = resolved.job.tracking.model_copy(
        update={"experiment": sweep.job.tracking.experiment or sweep.job.name}
    )
    return TrialTask(
        number=trial.number,
        resolved=resolved.with_sections(storage=sweep.job.storage, tracking=tracking),
        segment=trial.segments[-1],
        metrics=record.sweep.metrics,
        report_every=record.report_every,
        total_images=record.total_images,
        images_seen=trial.images_seen,
        tags={
            "mlflow.parentRunId": record.mlflow_run_id,
            "sweep": record.name,
            "sweep.trial": str(trial.number),
            "sweep.configuration": str(trial.configuration),
        },
    )


def _default_intervals(job: Job, record: SweepRecord) -> list[str]:
    """Override the intervals that the job leaves open: each result has points and a checkpoint."""
    every, train = record.report_every, job.train
    most_points = max(1, every // max(train.batch_size, every // POINTS_PER_RESULT))
    num_points = next(n for n in range(most_points, 0, -1) if every % n == 0)
    defaults = {
        "log_every": every // num_points,
        "checkpoint_every": every,
        "sample_every": max(1, record.total_images // GRIDS_PER_TRIAL // every) * every,
    }
    if job.data.validation is not None:
        defaults["validate_every"] = every
    return [f"train.{k}={v}" for k, v in defaults.items() if getattr(train, k) is None]
