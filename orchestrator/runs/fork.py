"""A new run that starts from a checkpoint of another one, with a job of its own."""

from dataclasses import dataclass

from orchestrator.config.job import Job
from orchestrator.console import say
from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.runs.checkpoints import checkpoints_at
from orchestrator.training.state import TrainState
from orchestrator.training.warm_start import adapted


@dataclass(frozen=True)
class Fork:
    """Where a new run starts."""

    state: TrainState
    """Fits the new run's job."""
    tags: dict[str, str]
    """For MLflow: where it comes from."""


def forked(uri: str, job: Job, num_samples: int) -> Fork:
    """The checkpoint at ``uri``, or the newest whole one of the run there, made to fit ``job``.

    Says what it is, and what begins anew.

    Args:
        num_samples: of the training set.

    Raises:
        UsageError: there is none, its networks are others, or it has seen all images of the job.
        DamagedCheckpoint: ``uri`` is one checkpoint, and it is damaged.
    """
    checkpoints, only = checkpoints_at(uri)
    state = checkpoints.latest() if only is None else checkpoints.load(only)
    if state is None:
        raise UsageError(f"there is no whole checkpoint at {mask(uri)} to start from")
    name = only or checkpoints.names()[-1]
    source = mask(f"{checkpoints.storage.uri.rstrip('/')}/{checkpoints.prefix}/{name}")
    total = job.train.total_images(num_samples)
    if state.images_seen >= total:
        raise UsageError(
            f"{source} has seen {state.images_seen:,} images, and this job ends after {total:,}, "
            "those included; raise train.images or train.epochs"
        )
    fork = adapted(state, job)
    anew = "; begins anew: " + ", ".join(fork.begun_anew) if fork.begun_anew else ""
    say(f"starting a new run from {source} after {state.images_seen:,} images{anew}")
    tags = {"forked_from": source, "forked_images_seen": str(state.images_seen)}
    return Fork(fork.state, tags)
