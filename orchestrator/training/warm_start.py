"""The state of one job's training as the beginning of another's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.errors import UsageError
from orchestrator.models.base import GenerativeModel, Phase, build_model
from orchestrator.seeding import seed_of
from orchestrator.training.state import (
    TrainState,
    is_own,
    keep_first_learning_rates,
    optimizer_settings,
)

SHOWN = 5
"""Tensors that are named when there are more that do not fit."""
OTHER_TENSORS = ("amsgrad", "centered", "momentum")
"""Settings that decide which tensors an optimizer keeps, by whether they are set."""


@dataclass(frozen=True)
class Adapted:
    """A state that fits a job, and what of the one before did not."""

    state: TrainState
    begun_anew: tuple[str, ...]
    """What starts afresh, such as ``the optimizer of generator``."""


def adapted(state: TrainState, job: Job) -> Adapted:
    """``state`` with all that ``job`` sets: learning rates, betas, whether there is an average.

    Weights, averages, optimizers' moments and step counters, and the images seen stay. What the
    guard remembers is gone: its lower learning rate was that of the job before.

    Raises:
        UsageError: the networks are others; the first tensors that differ are named.
    """
    torch.manual_seed(seed_of("weights", job.train.seed))
    model = build_model(job.model)
    phases = model.phases()
    keep_first_learning_rates(phases)
    _check_networks(state, model)
    begun_anew = []
    own = state.own
    if not _own_fits(state, model):
        own = {f"0.{name}": buffer for name, buffer in _own_buffers(model).items()}
        begun_anew.append("what each rank has for itself")
    settings = optimizer_settings(phases)
    tensors: dict[str, Tensor] = {}
    for phase in phases:
        mine = {k: v for k, v in state.optimizers.items() if k.rsplit(".", 2)[0] == phase.name}
        before = state.settings.get(phase.name)
        if before is not None and _fits(before, mine, phase, settings[phase.name]):
            settings[phase.name]["state"] = before["state"]
            tensors |= mine
        else:
            begun_anew.append(f"the optimizer of {phase.name}")
    model.load_state_dict({**_own_buffers(model), **state.networks})
    weights = model.inference_module().state_dict()
    averaged = job.train.ema_decay is not None and _shapes(weights) == _shapes(state.snapshot)
    changed = replace(
        state,
        snapshot=state.snapshot if averaged else weights,
        optimizers=tensors,
        settings=settings,
        own=own,
        guard={},
        owing=False,
    )
    return Adapted(changed.on_host(), tuple(begun_anew))


def _check_networks(state: TrainState, model: GenerativeModel) -> None:
    theirs = _shapes(state.networks)
    ours = _shapes({k: v for k, v in model.state_dict().items() if not is_own(model, k)})
    names = [*ours, *(name for name in theirs if name not in ours)]
    others = [name for name in names if ours.get(name) != theirs.get(name)]
    if not others:
        return
    lines = [
        f"{name}: {_shape(theirs.get(name))} in the checkpoint, {_shape(ours.get(name))} in this "
        "job's model"
        for name in others[:SHOWN]
    ]
    if len(others) > SHOWN:
        lines.append(f"and {len(others) - SHOWN} more of {len(names)} tensors")
    raise UsageError("the networks of this job are others:\n  " + "\n  ".join(lines))


def _own_fits(state: TrainState, model: GenerativeModel) -> bool:
    ours, ranks = _shapes(_own_buffers(model)), {k.partition(".")[0] for k in state.own}
    theirs = _shapes(state.own)
    return theirs == {f"{rank}.{k}": shape for rank in ranks for k, shape in ours.items()} and (
        bool(ranks) or not ours
    )


def _fits(
    before: Mapping[str, Any], tensors: Mapping[str, Tensor], phase: Phase, now: Mapping[str, Any]
) -> bool:
    """Whether ``phase``'s optimizer can go on from what one before it kept."""
    if [_kind(group) for group in before["groups"]] != [_kind(group) for group in now["groups"]]:
        return False
    parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
    return all(
        value.dim() == 0 or value.shape == parameters[int(key.rsplit(".", 2)[1])].shape
        for key, value in tensors.items()
    )


def _kind(group: Mapping[str, Any]) -> tuple[Sequence[int], set[str], list[bool]]:
    """What two groups have in common whose optimizers keep the same tensors."""
    switches = [bool(group.get(name)) for name in OTHER_TENSORS]
    return list(group["params"]), set(group), switches


def _own_buffers(model: GenerativeModel) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if is_own(model, name)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
