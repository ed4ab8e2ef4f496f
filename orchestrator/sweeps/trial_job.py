"""The jobs of a sweep's trainings, made from the sweep's own by the rules of ``--set``."""

import math

from orchestrator.config.as_overrides import settings
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob, load_text
from orchestrator.config.paths import resolve_places
from orchestrator.sweeps.records import Trial
from orchestrator.sweeps.store import SweepRecord
from orchestrator.sweeps.trial_runner import Task

LOOKS = 20
"""In a whole training, by default."""
POINTS_PER_LOOK = 10
GRIDS = 10
"""Sample grids of a whole training, by default; who is stopped at the first rung has one too."""


def report_every(job: Job, total: int) -> int:
    """Images between two looks: by default a multiple of what the points come at, if that is given.

    A look then has points of its very step.
    """
    sweep, train = job.sweep, job.train
    assert sweep is not None
    kinds = {name.startswith("validation/") for name in sweep.metrics}
    given = [train.validate_every if kind else train.log_every for kind in kinds]
    step = math.lcm(*(every for every in given if every is not None))
    default = -(-max(train.batch_size, total // LOOKS) // step) * step
    return min(total, sweep.report_every or default)


def trial_job(loaded: LoadedJob, record: SweepRecord, trial: Trial) -> LoadedJob:
    """The job of one training.

    Raises JobFileError if its values do not go together.
    """
    seed = loaded.job.train.seed + trial.repeat
    given = ("sweep=null", "register=null", f"train.seed={seed}")
    overrides = (
        *loaded.overrides,
        *given,
        *_intervals(loaded.job, record),
        *settings(trial.values),
    )
    return load_text(loaded.text, loaded.path, overrides)


def task_of(trial: Trial, record: SweepRecord, loaded: LoadedJob, job: Job) -> Task:
    """What the process of a training needs to know.

    Args:
        job: the sweep's, with absolute places.
    """
    own = trial_job(loaded, record, trial)
    places = resolve_places(own.job)
    tracking = places.tracking.model_copy(
        update={"experiment": job.tracking.experiment or job.name}
    )
    tags = {
        "mlflow.parentRunId": record.mlflow_run_id,
        "sweep": record.name,
        "sweep.trial": str(trial.number),
        "sweep.configuration": str(trial.configuration),
    }
    return Task(
        number=trial.number,
        loaded=own,
        job=places.model_copy(update={"storage": job.storage, "tracking": tracking}),
        leg=trial.legs[-1],
        metrics=record.sweep.metrics,
        report_every=record.report_every,
        total_images=record.total_images,
        images_seen=trial.images_seen,
        tags=tags,
    )


def _intervals(job: Job, record: SweepRecord) -> list[str]:
    """Intervals that the job leaves open, so that each look has points and a checkpoint."""
    every, train = record.report_every, job.train
    points = max(train.batch_size, every // POINTS_PER_LOOK)
    sampled = max(1, record.total_images // GRIDS // every) * every
    wanted = {
        "log_every": next((n for n in range(points, every) if every % n == 0), every),
        "checkpoint_every": every,
        "sample_every": sampled,
    }
    if job.data.validation is not None:
        wanted["validate_every"] = every
    return [f"train.{k}={v}" for k, v in wanted.items() if getattr(train, k) is None]
