"""What a training leaves behind, and where two of them differ: bit for bit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from orchestrator.training.state import TrainState

TENSORS = ("networks", "snapshot", "optimizers", "own")
CLOCK = ("images_per_s", "data_wait_share", "data/", "cost/")
"""Beginnings of the metrics that tell of the machine and not of the training."""


@dataclass(frozen=True)
class Evidence:
    """The end of a training, and the way there."""

    state: TrainState
    points: Mapping[str, float]
    """Every point of every curve, named <metric> at <images seen>."""
    samples: Mapping[str, str]
    """A digest of each rank's share of each batch, positions and pixels, by step and rank."""
    num_again: int = 0
    """Shares that were given a second time, because a step was trained again."""
    contradictions: tuple[str, ...] = ()
    """Points or shares that came out otherwise then."""


@dataclass(frozen=True)
class Check:
    """One kind of thing that was compared."""

    what: str
    count: int
    """How many of them there are in the uninterrupted training."""
    difference: str | None
    """The first difference; None if all are equal."""


def compare(whole: Evidence, resumed: Evidence) -> list[Check]:
    """All that is compared between an uninterrupted training and one that was interrupted.

    What neither of them has is left out.
    """
    checks = [
        _check(f"{kind} (tensors)", getattr(whole.state, kind), getattr(resumed.state, kind))
        for kind in TENSORS
    ]
    others = [_others(evidence.state) for evidence in (whole, resumed)]
    checks.append(_check("optimizers and guard (values)", *others))
    checks.append(_check("points of curves", whole.points, resumed.points))
    checks.append(_check("samples (shares of batches)", whole.samples, resumed.samples))
    first = next(iter(resumed.contradictions), None)
    checks.append(Check("shares that were trained again", resumed.num_again, first))
    return [check for check in checks if check.count or check.difference]


def _others(state: TrainState) -> dict[str, Any]:
    names = (field.name for field in fields(state) if field.name not in TENSORS)
    return {name: getattr(state, name) for name in names}


def _check(what: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Check:
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            which = "the interrupted" if name in two else "the uninterrupted"
            return Check(what, len(one), f"{name} is in {which} training only")
        if (difference := _difference(one[name], two[name])) is not None:
            return Check(what, len(one), f"{name}: {difference}")
    return Check(what, len(one), None)


def _difference(one: Any, two: Any) -> str | None:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _tensor_difference(one, two)
    both_nan = isinstance(one, float) and isinstance(two, float) and math.isnan(one + two)
    return None if one == two or both_nan else f"{one} and {two}"


def _tensor_difference(one: Tensor, two: Tensor) -> str | None:
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"{one.dtype} {tuple(one.shape)} and {two.dtype} {tuple(two.shape)}"
    if torch.equal(_bits(one), _bits(two)):
        return None
    far = (one.double() - two.double()).abs()
    return f"{int((far > 0).sum())} of {one.numel()} values differ, by up to {float(far.max()):.3g}"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def of_the_clock(metric: str) -> bool:
    """Whether a metric tells of the machine and not of the training."""
    return metric.startswith(CLOCK)
