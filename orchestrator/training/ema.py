"""Exponential moving average of weights."""

from collections.abc import Mapping

from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's weights, in separate tensors.

    It starts from the initial weights. Buffers that are not floating-point are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.average = _copy_state(module)

    def update(self) -> None:
        """Move the average towards the module's weights; called after each step."""
        for name, value in self.module.state_dict().items():
            average = self.average[name]
            if value.is_floating_point():
                average.lerp_(value, 1 - self.decay)
            else:
                average.copy_(value)

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
