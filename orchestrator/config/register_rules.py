"""Checks of the register section that involve more than one field."""

from collections.abc import Iterator

from orchestrator.config.job import Job
from orchestrator.config.logged_metrics import explain_unlogged, logged_metrics
from orchestrator.config.rules import Problem


def check_registration(job: Job) -> Iterator[Problem]:
    """Yield the mistakes of the register section."""
    if job.register_as is None or job.register_as.best is None:
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


def _run_metrics(job: Job) -> tuple[str, ...]:
    try:
        return logged_metrics(job)["run"]
    except RuntimeError:
        return ()
