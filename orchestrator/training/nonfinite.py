"""Keeps tensors that are not finite out of what lasts: buffers and checkpoints."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

LARGEST = 1 << 20
"""Values of the largest buffer that is copied before each step; pools of images are larger."""


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first that holds a value which is not finite; waits for the device once."""
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if not floats:
        return None
    device = max((t.device for t in floats.values()), key=lambda device: device.type != "cpu")
    sound = torch.stack([t.isfinite().all().to(device) for t in floats.values()]).tolist()
    return next((name for name, is_sound in zip(floats, sound, strict=True) if not is_sound), None)


def anywhere(found: str | None, device: torch.device, world_size: int) -> str | None:
    """``found`` if there is something on this rank, or else that another has; all ranks call it."""
    if world_size == 1:
        return found
    flag = torch.tensor(float(found is not None), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return (found or "a tensor of another worker") if flag.item() else None


class Buffers:
    """A model's buffers as they were before a step, to undo what a broken forward pass left there.

    Such as the running statistics of batch normalisation: a gradient that is not finite can be
    left out, but these were moved by the forward pass already, on one rank perhaps.
    """

    def __init__(self, model: nn.Module) -> None:
        places = [
            (module, name, buffer.numel() <= LARGEST)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point()
        ]
        self._small = [(module, name) for module, name, small in places if small]
        self._large = [(module, name) for module, name, small in places if not small]
        self._before = [buffer.detach().clone() for buffer in _now(self._small)]

    @torch.no_grad()
    def remember(self) -> None:
        """Take a copy; before each step."""
        if self._before:
            torch._foreach_copy_(self._before, _now(self._small))

    @torch.no_grad()
    def mend(self, device: torch.device, world_size: int) -> str | None:
        """Put back those that are not finite; names one that there is no copy of.

        Every rank calls it, and all get a name if one does.
        """
        for buffer, before in zip(_now(self._small), self._before, strict=True):
            if not buffer.isfinite().all():
                buffer.copy_(before)
        if not self._large:
            return None
        names = [name for _, name in self._large]
        tensors = _now(self._large)
        broken = (n for n, t in zip(names, tensors, strict=True) if not t.isfinite().all())
        return anywhere(next(broken, None), device, world_size)


def _now(places: list[tuple[nn.Module, str]]) -> list[Tensor]:
    buffers = [module._buffers[name] for module, name in places]
    return [buffer for buffer in buffers if buffer is not None]
