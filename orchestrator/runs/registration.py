"""Register the model of a trained run: its newest checkpoint, or the best by a metric."""

import hashlib
from shlex import quote

from torch import Tensor

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.config.register_section import RegisterSection
from orchestrator.console import log_info
from orchestrator.data.datasets.sources import NAMED_DATASETS
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import TrainingFailed
from orchestrator.record_reader import DamagedRecord
from orchestrator.redaction import mask
from orchestrator.registry import registry
from orchestrator.runs.evaluation_task import EvaluationRecord, read_record, record_key
from orchestrator.runs.gatekeeper import judge_new_version
from orchestrator.runs.opened_model import reading_of
from orchestrator.runs.run_context import RunContext
from orchestrator.storage.base import NotFound
from orchestrator.training.best_checkpoint import ScoredCheckpoint
from orchestrator.training.loop import Outcome


def _choose_checkpoint(
    context: RunContext, register_as: RegisterSection, outcome: Outcome
) -> tuple[str, dict[str, Tensor], ScoredCheckpoint]:
    """Load the weights of the checkpoint to register: its name, the weights, and its metrics."""
    checkpoints, wanted, best = context.checkpoints(), register_as.best, outcome.best
    if wanted is None:
        newest, weights = context.wait_out(checkpoints.latest_snapshot)
        return newest, weights, ScoredCheckpoint(outcome.images_seen, dict(outcome.metrics))
    if best is None:
        raise TrainingFailed(
            f"nothing is registered: no checkpoint of run {context.name} has a finite "
            f"{wanted.metric} (register.best); register the newest one by running the same command "
            "with --resume --set register.best=null"
        )
    name, weights = context.wait_out(lambda: checkpoints.best_snapshot(best.images_seen))
    value = best.metrics[wanted.metric]
    log_info(f"the best checkpoint by {wanted.metric} ({wanted.mode}) is {name}, with {value:.6g}")
    return name, weights, best


def register_checkpoint(context: RunContext, outcome: Outcome) -> registry.RegisteredVersion | None:
    """Register the newest or the best checkpoint if the job asks for it; return the version."""
    job = context.job
    if job.register_as is None:
        return None
    name, weights, scored = _choose_checkpoint(context, job.register_as, outcome)
    log_info(f"registering {mask(job.storage)}/{context.name}/checkpoints/{name}")
    stream = ShardStream(job, rank=0, world_size=1)
    examples = stream.examples(2)
    version = registry.register(
        context.run,
        job.register_as.name,
        job.model,
        weights,
        example=examples.images if examples.condition is None else examples.condition,
        evaluation=_find_evaluation(context, name),
        notes={
            **scored.metrics,
            "job": job.name,
            "job_digest": hashlib.sha256(context.rendered.encode()).hexdigest(),
            "images_seen": scored.images_seen,
            "data_digest": context.data_digest,
            "data_images": stream.num_samples,
            "validation_images": stream.num_validation,
            **_describe_source(job),
            "checkpoint": name,
            "images_per_worker": job.images_per_pass,
            **stream.note(scored.images_seen),
            **reading_of(job.data).note(),
        },
    )
    if job.register_as.promote is not None:
        judge_new_version(job, version)
    return version


def _find_evaluation(context: RunContext, checkpoint: str) -> EvaluationRecord | None:
    """Read the evaluation of a checkpoint; None if there is none that can be read."""
    try:
        key = record_key(context.name, checkpoint)
        return context.wait_out(lambda: read_record(context.storage(), key))
    except (NotFound, DamagedRecord):
        return None


def _describe_source(job: Job) -> dict[str, str]:
    """Return the notes about the data that only a job with ``data.source`` has."""
    if (source := job.data.source) is None:
        return {}
    licence = NAMED_DATASETS[source.name].licence
    return {"data": f"{source.name} at {source.size} px", "data_licence": licence}


def log_next_steps(version: registry.RegisteredVersion, job: Job) -> None:
    """Log the commands that draw from a registered version."""
    model = f"{version.name}@candidate"
    log_info(f"registered {version.name} version {version.version} as {model}; next:")
    options = "--input DRAWINGS" if job.model.translates else "--num-images 64"
    uri = tracking.uri_option(job.tracking.uri)
    log_info(f"  orchestrator sample {quote(model)} {options} --output IMAGES{uri}")
    log_info(f"  orchestrator models pull {quote(model)} DEST{uri}")
