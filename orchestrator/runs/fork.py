"""Start a new run, with its own job, from a checkpoint of another run."""

from dataclasses import dataclass

from orchestrator.config.job import Job
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.runs.checkpoint_address import checkpoints_at
from orchestrator.training.state import TrainState
from orchestrator.training.warm_start import warm_start


@dataclass(frozen=True)
class ForkedRun:
    """First state of a run that starts from another run's checkpoint."""

    state: TrainState
    """Fits the new run's job."""
    tags: dict[str, str]
    """MLflow tags that name the checkpoint."""


def fork_run(uri: str, job: Job, num_samples: int) -> ForkedRun:
    """Load a checkpoint and fit it to ``job``. Logs which it is and what is reinitialized.

    Args:
        uri: of a checkpoint, or of a run, whose newest valid checkpoint is loaded.
        num_samples: of the training set.

    Raises:
        UsageError: there is no checkpoint, its networks differ from the job's, or it has seen all
            images of the job.
        CorruptCheckpoint: ``uri`` is one checkpoint, and it is corrupt.
    """
    checkpoints, name = checkpoints_at(uri)
    state = checkpoints.latest() if name is None else checkpoints.load(name)
    if state is None:
        raise UsageError(f"there is no valid checkpoint at {mask(uri)} to start from")
    name = name or checkpoints.names()[-1]
    source = mask(f"{checkpoints.storage.uri.rstrip('/')}/{checkpoints.prefix}/{name}")
    total = job.train.total_images(num_samples)
    if state.images_seen >= total:
        raise UsageError(
            f"{source} has seen {state.images_seen:,} images, and this job ends after {total:,} "
            "images, including these; raise train.images or train.epochs"
        )
    start = warm_start(state, job)
    parts = "; reinitialized: " + ", ".join(start.reinitialized) if start.reinitialized else ""
    log_info(f"starting a new run from {source} after {state.images_seen:,} images{parts}")
    tags = {"forked_from": source, "forked_images_seen": str(state.images_seen)}
    return ForkedRun(start.state, tags)
