"""Compare what two runs of a job left behind, bit for bit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from orchestrator.training.instrumentation import tensor_bytes
from orchestrator.training.state import TENSORS, TrainState


@dataclass(frozen=True)
class RunArtifacts:
    """Final state of a run, with its metrics and samples."""

    state: TrainState
    points: Mapping[str, float]
    """Every logged value, named <metric> at <images seen>."""
    samples: Mapping[str, str]
    """Digest of each rank's share of each batch (positions and pixels), by images seen and rank."""
    num_repeated: int = 0
    """Shares of batches that were trained on again after a restart."""
    mismatches: tuple[str, ...] = ()
    """Values or shares that differed when they were repeated."""


@dataclass(frozen=True)
class EqualityCheck:
    """Comparison of one kind of artifact."""

    compared: str
    count: int
    """Number of such artifacts in the uninterrupted run."""
    difference: str | None
    """First difference; None if all are equal."""


def compare(baseline: RunArtifacts, resumed: RunArtifacts) -> tuple[EqualityCheck, ...]:
    """Compare an uninterrupted run with an interrupted one. Kinds that neither has are left out."""
    checks = [
        _compare(f"{kind} (tensors)", getattr(baseline.state, kind), getattr(resumed.state, kind))
        for kind in TENSORS
    ]
    others = [field.name for field in fields(TrainState) if field.name not in TENSORS]
    values = [{name: getattr(run.state, name) for name in others} for run in (baseline, resumed)]
    first = next(iter(resumed.mismatches), None)
    checks += [
        _compare("optimizers and guard (values)", *values),
        _compare("logged metric values", baseline.points, resumed.points),
        _compare("samples (shares of batches)", baseline.samples, resumed.samples),
        EqualityCheck("repeated shares of batches", resumed.num_repeated, first),
    ]
    return tuple(check for check in checks if check.count or check.difference)


def _compare(compared: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> EqualityCheck:
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            which = "interrupted" if name in two else "uninterrupted"
            return EqualityCheck(compared, len(one), f"{name} is in the {which} run only")
        if (difference := _difference(one[name], two[name])) is not None:
            return EqualityCheck(compared, len(one), f"{name}: {difference}")
    return EqualityCheck(compared, len(one), None)


def _difference(one: Any, two: Any) -> str | None:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _tensor_difference(one, two)
    both_nan = isinstance(one, float) and isinstance(two, float) and math.isnan(one + two)
    return None if one == two or both_nan else f"{one} and {two}"


def _tensor_difference(one: Tensor, two: Tensor) -> str | None:
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"{one.dtype} {tuple(one.shape)} and {two.dtype} {tuple(two.shape)}"
    if tensor_bytes(one) == tensor_bytes(two):
        return None
    distance = (one.double() - two.double()).abs()
    differing, largest = int((distance > 0).sum()), float(distance.max())
    return f"{differing} of {one.numel()} values differ, by up to {largest:.3g}"


def is_timing_metric(metric: str) -> bool:
    """Whether a metric depends on the machine and not on the training."""
    return metric.startswith(("images_per_s", "data/", "cost/"))
