"""Names of the metrics that a job logs, so that a key that names one can be checked."""

import difflib
from collections.abc import Iterator, Sequence

import torch

from orchestrator.config.job import Job
from orchestrator.config.metric_descriptions import (
    COST_METRICS,
    DATA_METRICS,
    LOOP_METRICS,
    PHASE_METRICS,
    SAMPLE_METRICS,
)
from orchestrator.evaluation.metric_names import METRICS, Metric, explain_misfits, is_measured
from orchestrator.models.base import GenerativeModel, model_module
from orchestrator.models.parts.abilities import HasLikelihood, Reconstructs
from orchestrator.models.parts.autoregressive import Autoregressive
from orchestrator.models.parts.meta_device import build_on_meta

EVALUATION = "evaluation/"
"""Prefix of the metrics of the evaluation beside the training."""
ONLY_IF_ASKED: tuple[Metric, ...] = ("nearest", "kid_per_class")
"""Metrics that a job has to name: one reads the training set, one depends on the set's classes."""
MAX_RANKS = 16
"""Up to so many ranks have their own metrics; for more, the mean and the maximum are logged."""


def logged_metrics(job: Job) -> dict[str, tuple[str, ...]]:
    """Return the names of all metrics that the job logs, by what they are about.

    model: the model's own and those of its samples; validation: those of the validation, logged
    only with ``data.validation``; run: speed, data, guard and cost, the same for every model.

    Raises:
        RuntimeError: the model cannot be built with the given sizes.
    """
    model = build_on_meta(job.model)
    with torch.device("meta"):
        phases = [phase.name for phase in model.phases()]
    own = (name for name in _metrics_of(job) if name not in job.model.unlogged_metrics)
    by_phase = (f"{phase}/{metric}" for phase in phases for metric in PHASE_METRICS)
    samples = [] if job.model.translates else list(SAMPLE_METRICS)
    if samples and job.guard.collapse == "off":
        samples.remove("samples/collapsed")
    validation = validation_metrics(model, job.data.binarize)
    return {
        "model": (*own, *by_phase, *samples),
        "validation": tuple(f"validation/{name}" for name in validation),
        "run": (*_loop_metrics(job), *_data_metrics(job), *_cost_metrics(job)),
    }


def explain_unlogged(names: Sequence[str], job: Job) -> Iterator[str]:
    """Yield for each of the metrics that ``job`` does not log why, and what it logs.

    Nothing for a model that cannot be built; `orchestrator plan` says why.
    """
    try:
        logged = logged_metrics(job)
    except RuntimeError:
        return
    has_validation = job.data.validation is not None
    for name in names:
        if name.startswith(EVALUATION):
            yield from _explain_not_evaluated(name, job)
            continue
        if name in logged["validation"] and not has_validation:
            yield f"{name} needs a validation set; set data.validation"
        elif not any(name in known for known in logged.values()):
            close = difflib.get_close_matches(name, [n for v in logged.values() for n in v], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            listed = [*logged["model"], *(logged["validation"] if has_validation else ())]
            more = ", and validation/... if data.validation is set"
            more = more if logged["validation"] and not has_validation else ""
            yield (
                f"the model {job.model.name} has no metric {name}; {hint}it has: "
                f"{', '.join(listed)}{more}"
            )


def _explain_not_evaluated(name: str, job: Job) -> Iterator[str]:
    """Yield why the evaluation of ``job`` does not measure ``name``; nothing if it does."""
    section = job.evaluate
    if section is None:
        yield f"{name} needs an evaluation beside the training; add `evaluate: {{}}`"
        return
    misfits = explain_misfits(build_on_meta(job.model), section.num_images)
    asked = section.metrics or [each for each in METRICS if each not in ONLY_IF_ASKED]
    measured = [each for each in asked if each not in misfits]
    num_images = None if job.model.translates else section.num_images
    if not is_measured(name.removeprefix(EVALUATION), measured, section.extractor, num_images):
        kind = section.extractor.partition(":")[0]
        yield (
            f"no evaluation of {', '.join(measured)} with the extractor {kind} (evaluate) has a "
            f"value {name}; `kid` has evaluation/kid.{kind}, see docs/evaluation.md"
        )


def validation_metrics(model: GenerativeModel, binarize: str | None) -> tuple[str, ...]:
    """Return the names, without validation/, of the validation metrics."""
    names: list[str] = []
    if model.config.translates:
        names += ["l1", "psnr", "l1_baseline_input", "l1_baseline_white", "random_feature_mmd"]
    elif isinstance(model, Reconstructs):
        names += ["l1", "psnr"]
    suffix = f"_binarized_{binarize}" if binarize else ""
    if isinstance(model, Autoregressive):
        names += [f"nll_nats{suffix}", f"bits_per_dim{suffix}"]
    elif isinstance(model, HasLikelihood):
        bounds, units = ("negative_elbo", "importance_weighted"), ("nats", "bits_per_dim")
        names += [f"{bound}_{unit}{suffix}" for unit in units for bound in bounds]
    return tuple(names)


def _metrics_of(job: Job) -> tuple[str, ...]:
    return tuple(getattr(model_module(job.model.name), "METRICS", {}))


def _loop_metrics(job: Job) -> list[str]:
    off = {"guard/collapse"} if job.guard.collapse == "off" else set()
    if job.guard.gradients == "off":
        off |= {"guard/skipped_updates", "guard/rollbacks"}
    return [name for name in LOOP_METRICS if name not in off]


def _data_metrics(job: Job) -> list[str]:
    """Return the names that are logged with any number of workers that the job allows."""
    fewest, most = job.cluster.min_workers, job.cluster.max_workers
    if most <= MAX_RANKS:
        kinds = [f"rank_{rank}" for rank in range(fewest)]
    else:
        kinds = ["mean", "max"] if fewest > MAX_RANKS else []
    return [name.replace("rank_0", kind) for kind in kinds for name in DATA_METRICS]


def _cost_metrics(job: Job) -> list[str]:
    return [name for name in COST_METRICS if name != "cost/total" or job.cost is not None]
