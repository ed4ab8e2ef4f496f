"""What is wrong with a sweep block, found before anything starts."""

import difflib
import math
from collections.abc import Iterator
from typing import Any

from orchestrator.config.as_overrides import setting
from orchestrator.config.rules import Problem
from orchestrator.config.search_space import clip
from orchestrator.config.sweep import Distribution, SweepSection
from orchestrator.models.base import model_module, model_names

SEARCHABLE = ("model", "data", "train", "guard")
"""Sections whose fields may be searched; the others say where and under which name it runs."""
TAKEN = ("train.images", "train.epochs", "train.seed", "model.name", "data.train")
"""Fields that all trainings of a sweep have in common."""


def sweep_problems(sweep: SweepSection, data: dict[str, Any]) -> Iterator[Problem]:
    """What no single field of the sweep block shows to be wrong.

    Args:
        data: the whole job as written.
    """
    yield from _metric_problems(sweep, data)
    yield from _count_problems(sweep)
    yield from _interval_problems(sweep, data.get("train", {}))
    for name in sweep.space:
        at = ("sweep", "space", name)
        if name.partition(".")[0] not in SEARCHABLE:
            yield Problem(at, f"cannot be searched; fields of {', '.join(SEARCHABLE)} can")
        elif name in TAKEN:
            yield Problem(at, "cannot be searched: trainings that differ in it cannot be compared")
        elif "=" in name or not all(name.split(".")):
            yield Problem(at, "is no field; write its sections with dots, such as model.gamma")


def probes(name: str, given: Distribution) -> Iterator[str]:
    """Each choice, or a range's ends and a value within, as ``--set`` takes them.

    A job with each of these must be right.
    """
    values = given.given
    match given.kind, values:
        case (("uniform" | "loguniform"), [float(low), float(high)]):
            values = [low, high, low + (high - low) / math.e]  # what takes it is no whole number
        case "quniform", [float(low), float(high), float(step)]:
            values = [low, clip(given, high), clip(given, low + step)]
    for value in values:
        yield setting(name, value)


def _metric_problems(sweep: SweepSection, data: dict[str, Any]) -> Iterator[Problem]:
    at = ("sweep", "metric")
    if not 1 <= len(sweep.metrics) <= 2 or len(set(sweep.metrics)) < len(sweep.metrics):
        yield Problem(at, f"has {len(sweep.metrics)} names; give one metric, or two different ones")
    elif len(sweep.modes) != len(sweep.metrics):
        yield Problem(
            ("sweep", "mode"),
            f"has {len(sweep.modes)} words for {len(sweep.metrics)} metrics (sweep.metric)",
        )
    elif len(sweep.metrics) > 1 and sweep.scheduler != "fifo":
        yield Problem(
            ("sweep", "scheduler"),
            f"{sweep.scheduler} compares by one metric, and sweep.metric has two; use fifo",
        )
    known = _metrics_of(data)
    for name in sweep.metrics:
        if known and not name.startswith("validation/") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield Problem(
                at,
                f"the model {data['model']['name']} has no metric {name}; {hint}it has: "
                f"{', '.join(known)}, and validation/... where data.validation is given",
            )
        if name.startswith("validation/") and not data.get("data", {}).get("validation"):
            yield Problem(at, f"{name} needs a set to validate on; give data.validation")


def _metrics_of(data: dict[str, Any]) -> list[str]:
    name = data["model"]["name"]
    return list(getattr(model_module(name), "METRICS", {})) if name in model_names() else []


def _count_problems(sweep: SweepSection) -> Iterator[Problem]:
    grids = [name for name, given in sweep.space.items() if given.kind == "grid"]
    if sweep.searcher == "grid" and not grids:
        yield Problem(
            ("sweep", "searcher"),
            "grid needs a field in sweep.space with {grid: [...]}; or use random or tpe",
        )
    if sweep.searcher != "grid" and sweep.trials is None:
        yield Problem(("sweep",), f"needs trials with the searcher {sweep.searcher}; such as 16")
    if sweep.scheduler in ("hyperband", "pbt") and sweep.seeds_per_config > 1:
        yield Problem(
            ("sweep", "seeds_per_config"),
            f"{sweep.seeds_per_config} is not possible with the scheduler {sweep.scheduler}; use 1",
        )
    if sweep.scheduler == "pbt" and (sweep.trials or 2) < 2:
        yield Problem(("sweep", "trials"), "1 is no population; pbt needs 2 or more")


def _interval_problems(sweep: SweepSection, train: dict[str, Any]) -> Iterator[Problem]:
    """A look needs the points of its very step, and a checkpoint where it can begin again."""
    every = sweep.report_every
    if every is None:
        return
    validated = any(name.startswith("validation/") for name in sweep.metrics)
    logged = not all(name.startswith("validation/") for name in sweep.metrics)
    for field, wanted in (("log_every", logged), ("validate_every", validated)):
        given = train.get(field)
        if wanted and isinstance(given, int) and every % given:
            yield Problem(
                ("sweep", "report_every"),
                f"{every} must be a multiple of train.{field}, which is {given}",
            )
