"""What a checkpoint holds: everything that the next step depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.models.base import GenerativeModel, Phase


@dataclass(frozen=True)
class TrainState:
    """The whole state of a training between two steps."""

    images_seen: int
    networks: dict[str, Tensor]
    """The model's state dict: weights and buffers of all networks."""
    snapshot: dict[str, Tensor]
    """State dict of the inference module to sample from: the EMA weights where there is EMA."""
    optimizers: dict[str, Tensor]
    """Tensors of all optimizers, named <phase>.<index of the parameter>.<name>."""
    settings: dict[str, Any]
    """The optimizers' other values, fit for JSON, by phase."""
    guard: dict[str, Any] = field(default_factory=dict)
    """What the guard remembers, fit for JSON; empty in checkpoints of before there was one."""
    owing: bool = False
    """Whether the validation and the pictures that are due at this step were left out, because the
    training was told to stop."""
    recorder: dict[str, Any] = field(default_factory=dict)
    """What the recorder of rank 0 has gathered and not told yet, fit for JSON."""
    own: dict[str, Tensor] = field(default_factory=dict)
    """What each rank has for itself, such as its pool of past images, named <rank>.<buffer>."""

    def on_host(self) -> "TrainState":
        """A copy that later steps do not change: CPU tensors, contiguous, sharing no memory."""
        return replace(
            self,
            networks=_on_host(self.networks),
            snapshot=_on_host(self.snapshot),
            optimizers=_on_host(self.optimizers),
            own=_on_host(self.own),
        )

    def own_of(self, rank: int) -> dict[str, Tensor]:
        """What ``rank`` had for itself; with more ranks than were saved, what an earlier one had.

        With fewer, what the last ones had is gone.
        """
        ranks = {int(name.partition(".")[0]) for name in self.own}
        if not ranks:
            return {}
        prefix = f"{rank % len(ranks)}."
        mine = (name for name in self.own if name.startswith(prefix))
        return {name.removeprefix(prefix): self.own[name] for name in mine}


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Always copies, for two names of one tensor, as in tied layers, share theirs."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def optimizer_tensors(phases: Sequence[Phase]) -> dict[str, Tensor]:
    """The tensors that the phases' optimizers hold, such as Adam's moments."""
    return {
        f"{phase.name}.{index}.{name}": value
        for phase in phases
        for index, values in phase.optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def optimizer_settings(phases: Sequence[Phase]) -> dict[str, Any]:
    """What the phases' optimizers hold besides tensors: hyperparameters and counters."""
    settings: dict[str, Any] = {}
    for phase in phases:
        state = phase.optimizer.state_dict()
        counters = {
            str(index): {k: v for k, v in values.items() if not isinstance(v, Tensor)}
            for index, values in state["state"].items()
        }
        settings[phase.name] = {"groups": state["param_groups"], "state": counters}
    return settings


def keep_first_learning_rates(phases: Sequence[Phase]) -> None:
    """Write down in each group the learning rate that factors are applied to, unless it is."""
    for phase in phases:
        for group in phase.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])


def is_own(model: GenerativeModel, name: str) -> bool:
    """Whether each rank has the buffer called ``name`` for itself."""
    return name.startswith(model.own)


def own_of_all_ranks(model: GenerativeModel, world_size: int) -> dict[str, Tensor]:
    """What each rank has for itself, named <rank>.<buffer>; every rank calls it."""
    found: dict[str, Tensor] = {}
    for name, buffer in model.named_buffers():
        if not is_own(model, name):
            continue
        everywhere = [buffer]
        if world_size > 1:
            everywhere = [torch.empty_like(buffer) for _ in range(world_size)]
            dist.all_gather(everywhere, buffer)
        found |= {f"{rank}.{name}": value for rank, value in enumerate(everywhere)}
    return found


def restore_optimizers(
    phases: Sequence[Phase], tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Give the optimizers back what ``optimizer_tensors`` and ``optimizer_settings`` took."""
    for phase in phases:
        saved = settings[phase.name]
        parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in saved["state"].items()}
        for key, value in tensors.items():
            owner, index, name = key.rsplit(".", 2)
            if owner == phase.name:
                parameter = parameters[int(index)]
                if value.shape == parameter.shape:  # fused updates ask for one memory layout
                    value = torch.empty_like(parameter).copy_(value)  # noqa: PLW2901
                state.setdefault(int(index), {})[name] = value
        phase.optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})


class Ema:
    """An exponential moving average of a module's weights, in tensors of its own.

    It starts from the initial weights. Buffers that are no floating-point numbers are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.average = _copy(module)

    def update(self) -> None:
        """Move the average towards the module's present weights; after each step."""
        for name, value in self.module.state_dict().items():
            average = self.average[name]
            if value.is_floating_point():
                average.lerp_(value, 1 - self.decay)
            else:
                average.copy_(value)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        for name, value in self.average.items():
            value.copy_(average[name])

    def swap(self) -> None:
        """Exchange the module's weights with the average; twice restores both."""
        current = _copy(self.module)
        self.module.load_state_dict(self.average)
        self.average = current


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
