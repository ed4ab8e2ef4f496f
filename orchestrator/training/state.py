"""Contents of a checkpoint: everything that the next step depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from orchestrator.models.base import GenerativeModel, Phase
from orchestrator.training.collectives import gather_tensors

DIVERGENCE_GUARD, COLLAPSE_DETECTOR = "divergence_guard", "collapse_detector"
BEST_CHECKPOINT = "best_checkpoint"
"""The loop's own stateful parts; a Worker may have more."""
TENSORS = ("networks", "snapshot", "optimizers", "per_rank_buffers")
"""The fields of a state that hold tensors."""


@dataclass(frozen=True)
class TrainState:
    """Complete state of a run between two steps."""

    images_seen: int
    networks: dict[str, Tensor]
    """The model's state dict: weights and buffers of all networks."""
    snapshot: dict[str, Tensor]
    """State dict of the inference module to sample from: the EMA weights where there is EMA."""
    optimizers: dict[str, Tensor]
    """Tensors of all optimizers, named <phase>.<index of the parameter>.<name>."""
    settings: dict[str, Any]
    """The optimizers' other values, by phase; JSON can hold them."""
    stateful: dict[str, dict[str, Any]] = field(default_factory=dict)
    """State of each stateful part of the run, by its name; JSON can hold it."""
    eval_pending: bool = False
    """Whether the validation and the pictures that are due at this step were left out, because the
    run was asked to stop."""
    per_rank_buffers: dict[str, Tensor] = field(default_factory=dict)
    """Buffers that differ from rank to rank, such as pools of past images: <rank>.<buffer>."""

    def on_host(self) -> "TrainState":
        """Return a copy that later steps do not change: contiguous CPU tensors, none shared."""
        copies: dict[str, Any] = {name: _copy_to_host(getattr(self, name)) for name in TENSORS}
        return replace(self, **copies)

    def buffers_of(self, rank: int) -> dict[str, Tensor]:
        """Return the per-rank buffers for ``rank``.

        With more ranks than were saved, the additional ones start from copies; with fewer, the
        buffers of the last ones are lost.
        """
        ranks = {int(name.partition(".")[0]) for name in self.per_rank_buffers}
        if not ranks:
            return {}
        prefix = f"{rank % len(ranks)}."
        return {
            name.removeprefix(prefix): value
            for name, value in self.per_rank_buffers.items()
            if name.startswith(prefix)
        }


def _copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy always: two names of one tensor, as in tied layers, share its memory."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def optimizer_tensors(phases: Sequence[Phase]) -> dict[str, Tensor]:
    """Collect the tensors that the phases' optimizers hold, such as Adam's moments."""
    return {
        f"{phase.name}.{index}.{name}": value
        for phase in phases
        for index, values in phase.optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def optimizer_settings(phases: Sequence[Phase]) -> dict[str, Any]:
    """Collect what the phases' optimizers hold besides tensors: hyperparameters and counters."""
    settings: dict[str, Any] = {}
    for phase in phases:
        state = phase.optimizer.state_dict()
        counters = {
            str(index): {k: v for k, v in values.items() if not isinstance(v, Tensor)}
            for index, values in state["state"].items()
        }
        settings[phase.name] = {"groups": state["param_groups"], "state": counters}
    return settings


def set_initial_learning_rates(phases: Sequence[Phase]) -> None:
    """Store in each parameter group the learning rate that factors apply to, unless it has one."""
    for phase in phases:
        for group in phase.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])


def is_per_rank(model: GenerativeModel, name: str) -> bool:
    """Whether the buffer called ``name`` differs from rank to rank."""
    return name.startswith(model.per_rank_buffers)


def gather_per_rank_buffers(model: GenerativeModel, world_size: int) -> dict[str, Tensor]:
    """Gather all ranks' per-rank buffers, named <rank>.<buffer>; every rank calls it."""
    gathered: dict[str, Tensor] = {}
    for name, buffer in model.named_buffers():
        if is_per_rank(model, name):
            values = gather_tensors(buffer, world_size)
            gathered |= {f"{rank}.{name}": value for rank, value in enumerate(values)}
    return gathered


def restore_optimizers(
    phases: Sequence[Phase], tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Restore what ``optimizer_tensors`` and ``optimizer_settings`` returned."""
    for phase in phases:
        saved = settings[phase.name]
        parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in saved["state"].items()}
        for key, value in tensors.items():
            owner, index, name = key.rsplit(".", 2)
            if owner == phase.name:
                parameter = parameters[int(index)]
                if value.shape == parameter.shape:  # fused updates need the same memory layout
                    value = torch.empty_like(parameter).copy_(value)  # noqa: PLW2901
                state.setdefault(int(index), {})[name] = value
        phase.optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
