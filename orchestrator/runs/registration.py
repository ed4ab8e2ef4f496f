"""Register the model of a trained run: its newest checkpoint, or the best by a metric."""

import hashlib
from shlex import quote
from typing import NamedTuple

from torch import Tensor

from orchestrator import tracking
from orchestrator.config.job import Job
from orchestrator.config.register_section import BestSection, RegisterSection
from orchestrator.console import log_info
from orchestrator.data.datasets.sources import NAMED_DATASETS
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import TrainingFailed
from orchestrator.record_reader import DamagedRecord
from orchestrator.redaction import mask
from orchestrator.registry import registry
from orchestrator.runs.best_evaluation import BestEvaluation
from orchestrator.runs.evaluation_task import EvaluationRecord, read_record, record_key
from orchestrator.runs.gatekeeper import judge_new_version
from orchestrator.runs.opened_model import reading_of
from orchestrator.runs.run_context import RunContext
from orchestrator.storage.base import NotFound
from orchestrator.training.best_checkpoint import ScoredCheckpoint, score_of_step
from orchestrator.training.loop import Outcome

Z_95 = 1.959964
"""Quantile of the normal distribution for a two-sided interval of 95 %."""


class _Chosen(NamedTuple):
    """The checkpoint to register."""

    name: str
    weights: dict[str, Tensor]
    scored: ScoredCheckpoint
    why: str


def _choose_checkpoint(
    context: RunContext, register_as: RegisterSection, outcome: Outcome
) -> _Chosen:
    """Load the weights of the checkpoint to register."""
    checkpoints, wanted, best = context.checkpoints(), register_as.best, outcome.best
    if wanted is not None and wanted.is_evaluated:
        return _choose_evaluated(context, wanted, outcome)
    if wanted is None:
        return _choose_newest(context, outcome)
    if best is None:
        raise TrainingFailed(
            f"nothing is registered: no checkpoint of run {context.name} has a finite "
            f"{wanted.metric} (register.best); register the newest one by running the same command "
            "with --resume --set register.best=null"
        )
    number = f"{best.images_seen:012d}-"
    name, weights = context.wait_out(lambda: checkpoints.best_snapshot(number))
    return _Chosen(name, weights, best, _log_best(wanted, name, best.metrics[wanted.metric]))


def _choose_newest(context: RunContext, outcome: Outcome) -> _Chosen:
    name, weights = context.wait_out(context.checkpoints().latest_snapshot)
    stateful = context.wait_out(lambda: context.checkpoints().stateful(name))
    own = score_of_step(stateful, outcome.images_seen)
    metrics = {**outcome.metrics, **own.metrics}
    errors = {**outcome.standard_errors, **own.standard_errors}
    scored = ScoredCheckpoint(outcome.images_seen, metrics, errors)
    return _Chosen(name, weights, scored, "the newest of its run")


def _choose_evaluated(context: RunContext, wanted: BestSection, outcome: Outcome) -> _Chosen:
    """Choose by the evaluations in the storage; without one, the newest checkpoint."""
    checkpoints = context.checkpoints()
    evaluations = BestEvaluation(context.storage(), context.name, wanted)
    best = context.wait_out(lambda: evaluations.find(checkpoints.names()))
    if best is None:
        log_info(
            f"no evaluation of run {context.name} has {wanted.metric} (register.best): the "
            "newest checkpoint is registered"
        )
        return _choose_newest(context, outcome)
    first = context.wait_out(evaluations.find)
    if first is not None and first.checkpoint != best.checkpoint:
        value = first.points()[wanted.metric]
        log_info(f"checkpoint {first.checkpoint} is damaged or gone; its value was {value:.6g}")
    name, weights = context.wait_out(lambda: checkpoints.best_snapshot(best.checkpoint))
    stateful = context.wait_out(lambda: checkpoints.stateful(name))
    scored = score_of_step(stateful, best.images_seen)
    scored.metrics.update(best.points())
    return _Chosen(name, weights, scored, _log_best(wanted, name, scored.metrics[wanted.metric]))


def _log_best(wanted: BestSection, name: str, value: float) -> str:
    """Say which checkpoint is the best; return it as a note."""
    log_info(f"the best checkpoint by {wanted.metric} ({wanted.mode}) is {name}, with {value:.6g}")
    return f"the best of its run by {wanted.metric} ({wanted.mode})"


def register_checkpoint(context: RunContext, outcome: Outcome) -> registry.RegisteredVersion | None:
    """Register the newest or the best checkpoint if the job asks for it; return the version."""
    job = context.job
    if job.register_as is None:
        return None
    name, weights, scored, why = _choose_checkpoint(context, job.register_as, outcome)
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
            **_intervals(scored),
            "job": job.name,
            "job_digest": hashlib.sha256(context.rendered.encode()).hexdigest(),
            "images_seen": scored.images_seen,
            "data_digest": context.data_digest,
            "data_images": stream.num_samples,
            "validation_images": stream.num_validation,
            **_describe_source(job),
            "checkpoint": name,
            "chosen": why,
            "images_per_worker": job.images_per_pass,
            **stream.note(scored.images_seen),
            **reading_of(job.data).note(),
        },
    )
    if job.register_as.promote is not None:
        judge_new_version(job, version)
    return version


def _intervals(scored: ScoredCheckpoint) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the note with the 95 % intervals of the means over the images of the validation."""
    means = ((name, scored.metrics[name], error) for name, error in scored.standard_errors.items())
    found = {name: (mean - Z_95 * error, mean + Z_95 * error) for name, mean, error in means}
    return {"intervals": found} if found else {}


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
