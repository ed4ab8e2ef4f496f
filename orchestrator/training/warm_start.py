"""Starts a run from the checkpoint of another job."""

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
    BEST_CHECKPOINT,
    COLLAPSE_DETECTOR,
    DIVERGENCE_GUARD,
    TrainState,
    is_per_rank,
    optimizer_settings,
    set_initial_learning_rates,
)

MAX_LISTED = 5
"""Tensors that do not fit and are listed in an error."""
DROPPED = (DIVERGENCE_GUARD, COLLAPSE_DETECTOR, BEST_CHECKPOINT)
OTHER_TENSORS = ("amsgrad", "centered", "momentum")
"""Settings that decide, by whether they are set, which tensors an optimizer has."""


@dataclass(frozen=True)
class WarmStart:
    """A state that fits a job, and the parts of the checkpoint that did not."""

    state: TrainState
    reinitialized: tuple[str, ...]
    """Parts that start from scratch, such as ``the optimizer of generator``."""


def warm_start(state: TrainState, job: Job) -> WarmStart:
    """Give ``state`` the settings of ``job``: learning rates, betas, whether there is an EMA.

    Weights, averages, optimizers' moments and step counters, and the images seen stay. The states
    of the divergence guard, the collapse detector and the best checkpoint are dropped: they belong
    to the other job.

    Raises:
        UsageError: the networks differ; the first different tensors are listed.
    """
    torch.manual_seed(seed_of("weights", job.train.seed))
    model = build_model(job.model)
    phases = model.phases()
    set_initial_learning_rates(phases)
    _check_networks(state, model)
    reinitialized = []
    per_rank = state.per_rank_buffers
    if not _per_rank_buffers_fit(state, model):
        per_rank = {f"0.{name}": buffer for name, buffer in _per_rank_buffers(model).items()}
        reinitialized.append("the per-rank buffers")
    settings = optimizer_settings(phases)
    tensors: dict[str, Tensor] = {}
    for phase in phases:
        mine = {k: v for k, v in state.optimizers.items() if k.rsplit(".", 2)[0] == phase.name}
        before = state.settings.get(phase.name)
        if before is not None and _fits(before, mine, phase, settings[phase.name]):
            settings[phase.name]["state"] = before["state"]
            tensors |= mine
        else:
            reinitialized.append(f"the optimizer of {phase.name}")
    model.load_state_dict({**_per_rank_buffers(model), **state.networks})
    weights = model.inference_module().state_dict()
    averaged = job.train.ema_decay is not None and _shapes(weights) == _shapes(state.snapshot)
    changed = replace(
        state,
        snapshot=state.snapshot if averaged else weights,
        optimizers=tensors,
        settings=settings,
        per_rank_buffers=per_rank,
        stateful={name: part for name, part in state.stateful.items() if name not in DROPPED},
        eval_pending=False,
    )
    return WarmStart(changed.on_host(), tuple(reinitialized))


def _check_networks(state: TrainState, model: GenerativeModel) -> None:
    saved = _shapes(state.networks)
    ours = _shapes({k: v for k, v in model.state_dict().items() if not is_per_rank(model, k)})
    names = [*ours, *(name for name in saved if name not in ours)]
    different = [name for name in names if ours.get(name) != saved.get(name)]
    if not different:
        return
    lines = [
        f"{n}: {_shape(saved.get(n))} in the checkpoint, {_shape(ours.get(n))} in this job's model"
        for n in different[:MAX_LISTED]
    ]
    if len(different) > MAX_LISTED:
        lines.append(f"and {len(different) - MAX_LISTED} more of {len(names)} tensors")
    raise UsageError(
        "the networks of this job differ from those of the checkpoint:\n  " + "\n  ".join(lines)
    )


def _per_rank_buffers_fit(state: TrainState, model: GenerativeModel) -> bool:
    ours, saved = _shapes(_per_rank_buffers(model)), _shapes(state.per_rank_buffers)
    ranks = {name.partition(".")[0] for name in saved}
    if not ranks:
        return not ours
    return saved == {f"{rank}.{k}": shape for rank in ranks for k, shape in ours.items()}


def _fits(
    before: Mapping[str, Any], tensors: Mapping[str, Tensor], phase: Phase, now: Mapping[str, Any]
) -> bool:
    """Whether ``phase``'s optimizer can load the state of the optimizer before it."""
    if list(map(_signature, before["groups"])) != list(map(_signature, now["groups"])):
        return False
    parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
    return all(
        value.dim() == 0 or value.shape == parameters[int(key.rsplit(".", 2)[1])].shape
        for key, value in tensors.items()
    )


def _signature(group: Mapping[str, Any]) -> tuple[Sequence[int], set[str], list[bool]]:
    """Return what is equal for two groups whose optimizers have the same tensors."""
    switches = [bool(group.get(name)) for name in OTHER_TENSORS]
    return list(group["params"]), set(group), switches


def _per_rank_buffers(model: GenerativeModel) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if is_per_rank(model, name)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
