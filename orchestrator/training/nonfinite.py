"""Keeps values that are not finite out of buffers and checkpoints."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

MAX_COPIED = 1 << 20
"""Values of the largest buffer that is copied before each step; pools of images are larger."""


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that is not finite; waits for the device once."""
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if not floats:
        return None
    device = max((t.device for t in floats.values()), key=lambda device: device.type != "cpu")
    finite = torch.stack([t.isfinite().all().to(device) for t in floats.values()]).tolist()
    return next((name for name, ok in zip(floats, finite, strict=True) if not ok), None)


def any_rank(found: str | None, device: torch.device, world_size: int) -> str | None:
    """Return ``found``, or a text where only another rank found something; all ranks call it."""
    if world_size == 1:
        return found
    flag = torch.tensor(float(found is not None), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return (found or "a tensor of another worker") if flag.item() else None


class Buffers:
    """A model's buffers before a step, to undo what a broken forward pass left in them.

    For example the running statistics of batch normalisation: an update whose gradient is not
    finite can be skipped, but the forward pass has already changed them, perhaps on one rank only.
    """

    def __init__(self, model: nn.Module) -> None:
        self._small: list[tuple[nn.Module, str]] = []
        self._large: list[tuple[nn.Module, str]] = []
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    places = self._small if buffer.numel() <= MAX_COPIED else self._large
                    places.append((module, name))
        self._copies = [buffer.detach().clone() for buffer in _buffers_at(self._small)]

    @torch.no_grad()
    def snapshot(self) -> None:
        """Copy the buffers; called before each step."""
        if self._copies:
            torch._foreach_copy_(self._copies, _buffers_at(self._small))

    @torch.no_grad()
    def restore(self, device: torch.device, world_size: int) -> str | None:
        """Restore the buffers that are not finite; every rank calls it.

        Returns:
            The name of a buffer that is not finite and was too large to copy; None if there is
            none on any rank.
        """
        for buffer, copy in zip(_buffers_at(self._small), self._copies, strict=True):
            if not buffer.isfinite().all():
                buffer.copy_(copy)
        if not self._large:
            return None
        large = zip(self._large, _buffers_at(self._large), strict=True)
        broken = (name for (_, name), buffer in large if not buffer.isfinite().all())
        return any_rank(next(broken, None), device, world_size)


def _buffers_at(places: list[tuple[nn.Module, str]]) -> list[Tensor]:
    buffers = [module._buffers[name] for module, name in places]
    return [buffer for buffer in buffers if buffer is not None]
