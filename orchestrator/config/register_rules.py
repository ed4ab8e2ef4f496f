"""Checks of the register section that involve more than one field."""

from collections.abc import Iterator

from orchestrator.config.job import Job
from orchestrator.config.logged_metrics import explain_unlogged, logged_metrics
from orchestrator.config.register_section import PromoteSection
from orchestrator.config.rules import Problem
from orchestrator.extractor_name import FORMS, parse_extractor
from orchestrator.models.parts.meta_device import build_on_meta

RESERVED = ("candidate", "latest")
"""The newest version has the first, and MLflow takes the second for itself."""
FEWEST_NEAR = 100
"""As in evaluation/measure.py: fewer images cannot raise the alarm of copied images."""


def check_registration(job: Job) -> Iterator[Problem]:
    """Yield the mistakes of the register section."""
    if job.register_as is None:
        return
    if job.register_as.promote is not None:
        yield from _check_promotion(job, job.register_as.promote)
    if job.register_as.best is None:
        return
    if job.sweep is not None:
        message = (
            "a sweep registers the newest checkpoint of its best trial (sweep.metric); remove "
            "register.best, or the sweep"
        )
        yield Problem(("register", "best"), message)
        return
    at, metric = ("register", "best", "metric"), job.register_as.best.metric
    unlogged = list(explain_unlogged([metric], job))
    for message in unlogged:
        yield Problem(at, message)
    if not unlogged and metric in _run_metrics(job):
        message = (
            f"{metric} tells how a run went, not how good its model is; use a metric of the model "
            "or of its validation, such as validation/l1"
        )
        yield Problem(at, message)


def _check_promotion(job: Job, promote: PromoteSection) -> Iterator[Problem]:
    at = ("register", "promote")
    if job.data.validation is None:
        message = "needs a validation set to measure on; set data.validation"
        yield Problem(at, message)
    if promote.alias in RESERVED:
        message = f"{promote.alias!r} is an alias of its own; use another, such as champion"
        yield Problem((*at, "alias"), message)
    if promote.at_most.nearest is not None and promote.num_images < FEWEST_NEAR:
        message = (
            f"{promote.num_images} is too few for register.promote.at_most.nearest; use "
            f"{FEWEST_NEAR} or more"
        )
        yield Problem((*at, "num_images"), message)
    if promote.at_most.nearest is not None and not isinstance(job.data.train, str):
        message = "looks for copies in one training set, and data.train lists several; remove it"
        yield Problem((*at, "at_most", "nearest"), message)
    if promote.at_most.l1 is not None and not job.model.translates:
        message = f"the model {job.model.name} does not translate, so its images have no target"
        yield Problem((*at, "at_most", "l1"), message)
    if parse_extractor(promote.extractor) is None:
        message = f"{promote.extractor!r} is not an extractor; use {FORMS}"
        yield Problem((*at, "extractor"), message)
    yield from _check_nats(job, promote)
    yield from _check_exports(job, promote)


def _check_exports(job: Job, promote: PromoteSection) -> Iterator[Problem]:
    at, formats = ("register", "promote", "exports"), promote.exports
    if len(set(formats)) < len(formats):
        yield Problem(at, f"{formats[0]} is there twice; remove one")
    if formats and (reason := _why_not_exported(job)):
        message = f"the model {job.model.name} is not exported: {reason}; remove it"
        yield Problem(at, message)


def _why_not_exported(job: Job) -> str:
    try:
        return build_on_meta(job.model).not_exported
    except RuntimeError:  # it cannot be built; `orchestrator plan` says why
        return ""


def _check_nats(job: Job, promote: PromoteSection) -> Iterator[Problem]:
    """Check that the model has the likelihood that the gate limits."""
    for kind in ("nll_nats", "negative_elbo_nats"):
        if kind not in promote.at_most.bounds():
            continue
        try:
            logged = logged_metrics(job)["validation"]
        except RuntimeError:  # it cannot be built; `orchestrator plan` says why
            return
        names = [name.removeprefix("validation/") for name in logged]
        known = [name for name in ("nll_nats", "negative_elbo_nats") if _has(names, name)]
        if kind not in known:
            instead = f"has {known[0]}: use that" if known else "has no likelihood: remove it"
            message = f"is a bound of {kind}, but the model {job.model.name} {instead}"
            yield Problem(("register", "promote", "at_most", kind), message)


def _has(names: list[str], metric: str) -> bool:
    """Whether a metric is among the names, also with the suffix of binarized images."""
    return any(name == metric or name.startswith(f"{metric}_binarized") for name in names)


def _run_metrics(job: Job) -> tuple[str, ...]:
    try:
        return logged_metrics(job)["run"]
    except RuntimeError:
        return ()
