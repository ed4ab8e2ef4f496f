"""Checks of the evaluate section that involve more than one field."""

from collections.abc import Iterator

from orchestrator.config.job import Job
from orchestrator.config.rules import Problem
from orchestrator.evaluation.metric_names import OF_FEATURES, explain_misfits
from orchestrator.extractor_name import FORMS, parse_extractor
from orchestrator.models.parts.meta_device import build_on_meta


def check_evaluation(job: Job) -> Iterator[Problem]:
    """Yield the mistakes of the evaluate section; what depends on the sets is checked with them."""
    section = job.evaluate
    if section is None:
        return
    if job.data.validation is None:
        message = "needs images that the training never sees; set data.validation"
        yield Problem(("evaluate",), message)
    if parse_extractor(section.extractor) is None:
        message = f"{section.extractor!r} is no extractor; use {FORMS}"
        yield Problem(("evaluate", "extractor"), message)
    asked, misfits = section.metrics or [], _misfits(job, section.num_images)
    for number, metric in enumerate(asked):
        at = ("evaluate", "metrics", number)
        if metric in asked[:number]:
            yield Problem(at, f"{metric} is there twice; remove one")
        if metric in misfits:
            yield Problem(at, f"does not fit: {misfits[metric]}; remove {metric}")
        if metric == "nearest" and not isinstance(job.data.train, str):
            message = "looks for copies in one training set, and data.train lists several; "
            yield Problem(at, message + "remove nearest")
    if asked and not OF_FEATURES & set(asked) and section.extractor != "lite0":
        message = f"is not used by {', '.join(asked)}; remove it, or add kid to evaluate.metrics"
        yield Problem(("evaluate", "extractor"), message)


def _misfits(job: Job, num_images: int) -> dict[str, str]:
    try:
        return explain_misfits(build_on_meta(job.model), num_images)
    except RuntimeError:  # it cannot be built; `orchestrator plan` says why
        return {}
