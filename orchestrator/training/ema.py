"""Exponential moving average of weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's weights, in separate tensors.

    It starts from the initial weights. Buffers that are not floating-point are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.average = _copy_state(module)
        is_float = {name: value.is_floating_point() for name, value in self.average.items()}
        self._averaged = [name for name in self.average if is_float[name]]
        self._copied = [name for name in self.average if not is_float[name]]
        self._owners = {name: _owner(module, name) for name in self.average}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the module's weights; called after each step."""
        averages, values = self._pairs(self._averaged)
        torch._foreach_lerp_(averages, values, 1 - self.decay)
        for average, value in zip(*self._pairs(self._copied), strict=True):
            average.copy_(value)

    def _pairs(self, names: list[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the averages and the present values; a module may have replaced a buffer."""
        values = [self._owners[name][name.rpartition(".")[2]] for name in names]
        return [self.average[name] for name in names], [v for v in values if v is not None]

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, value in self.average.items():
            value.copy_(average[name])

    def swap(self) -> None:
        """Exchange the module's weights with the average; a second call restores both."""
        current = _copy_state(self.module)
        self.module.load_state_dict(self.average)
        self.average = current


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _owner(module: nn.Module, name: str) -> Mapping[str, Tensor | None]:
    """Return where the layer of a module keeps the parameter or buffer ``name``."""
    path, _, leaf = name.rpartition(".")
    layer = module.get_submodule(path)
    return layer._parameters if leaf in layer._parameters else layer._buffers
