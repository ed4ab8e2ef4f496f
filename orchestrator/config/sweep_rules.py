"""Checks of the sweep section that involve more than one field."""

import math
from collections.abc import Iterator
from typing import Any

from orchestrator.config.overrides import to_override
from orchestrator.config.rules import Problem
from orchestrator.config.search_space import clip, num_configurations
from orchestrator.config.sweep import Distribution, SweepSection
from orchestrator.evaluation.metric_names import EVALUATION

MAX_TRIALS = 1_000_000
"""As for the key `trials`."""
SEARCHABLE = ("model", "data", "train", "guard")
"""Sections whose fields a sweep may vary; the others define where a trial runs."""
FIXED = ("train.images", "train.epochs", "train.seed", "model.name", "data.train")
"""Fields that all trials of a sweep share, or they could not be compared."""


def check_sweep(sweep: SweepSection, data: dict[str, Any]) -> Iterator[Problem]:
    """Yield the mistakes of the sweep section that involve several fields of the job ``data``."""
    yield from _check_metrics(sweep)
    yield from _check_counts(sweep)
    yield from _check_intervals(sweep, data.get("train", {}))
    for name in sweep.space:
        at = ("sweep", "space", name)
        if name.partition(".")[0] not in SEARCHABLE:
            yield Problem(at, f"is not searchable; only fields of {', '.join(SEARCHABLE)} are")
        elif name in FIXED:
            yield Problem(at, "is not searchable: trials that differ in it cannot be compared")
        elif "=" in name or not all(name.split(".")):
            yield Problem(at, "is not a field; write its path with dots, such as model.gamma")


def probe_overrides(name: str, distribution: Distribution) -> Iterator[str]:
    """Yield overrides with each choice, or with the ends of a range and a value between them.

    The job must be valid with each of these.
    """
    values = distribution.args
    match distribution.kind, values:
        case (("uniform" | "loguniform"), [float(low), float(high)]):
            values = [low, high, low + (high - low) / math.e]  # never an integer
        case "quniform", [float(low), float(high), float(step)]:
            values = [low, clip(distribution, high), clip(distribution, low + step)]
    for value in values:
        yield to_override(name, value)


def _check_metrics(sweep: SweepSection) -> Iterator[Problem]:
    at = ("sweep", "metric")
    if not 1 <= len(sweep.metrics) <= 2 or len(set(sweep.metrics)) < len(sweep.metrics):
        yield Problem(at, f"has {len(sweep.metrics)} metrics; give one, or two different ones")
    elif len(sweep.modes) != len(sweep.metrics):
        message = f"has {len(sweep.modes)} modes for {len(sweep.metrics)} metrics (sweep.metric)"
        yield Problem(("sweep", "mode"), message)
    elif len(sweep.metrics) > 1 and sweep.scheduler != "fifo":
        message = f"{sweep.scheduler} supports one metric, and sweep.metric has two; use fifo"
        yield Problem(("sweep", "scheduler"), message)
    late = [name for name in sweep.metrics if name.startswith(EVALUATION)]
    if late and sweep.scheduler != "fifo":
        message = (
            f"{sweep.scheduler} compares trials while they train, and {late[0]} is judged at their "
            "end; use fifo, or a metric of the validation"
        )
        yield Problem(("sweep", "scheduler"), message)


def _check_counts(sweep: SweepSection) -> Iterator[Problem]:
    grids = [name for name, given in sweep.space.items() if given.kind == "grid"]
    if sweep.searcher == "grid" and not grids:
        message = "grid needs a field in sweep.space with {grid: [...]}; or use random or tpe"
        yield Problem(("sweep", "searcher"), message)
    if sweep.searcher == "grid" and (trials := num_configurations(sweep)) > MAX_TRIALS:
        message = f"has a grid of {trials:,} combinations; set `trials`, at most {MAX_TRIALS:,}"
        yield Problem(("sweep",), message)
    if sweep.searcher != "grid" and sweep.trials is None:
        yield Problem(("sweep",), f"the searcher {sweep.searcher} needs `trials`, such as 16")
    if sweep.scheduler in ("hyperband", "pbt") and sweep.seeds_per_config > 1:
        yield Problem(
            ("sweep", "seeds_per_config"),
            f"{sweep.seeds_per_config} is not supported by the scheduler {sweep.scheduler}; use 1",
        )
    if sweep.scheduler == "pbt" and (sweep.trials or 2) < 2:
        yield Problem(("sweep", "trials"), "1 is not a population; pbt needs 2 or more")


def _check_intervals(sweep: SweepSection, train: dict[str, Any]) -> Iterator[Problem]:
    """Check that every intermediate result falls on a point of its metrics."""
    every = sweep.report_every
    if every is None:
        return
    validated = any(name.startswith("validation/") for name in sweep.metrics)
    logged = not all(name.startswith("validation/") for name in sweep.metrics)
    for field, wanted in (("log_every", logged), ("validate_every", validated)):
        given = train.get(field)
        if wanted and isinstance(given, int) and every % given:
            message = f"{every} must be a multiple of train.{field}, which is {given}"
            yield Problem(("sweep", "report_every"), message)
