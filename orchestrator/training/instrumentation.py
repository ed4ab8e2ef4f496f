"""Observes what a model does in a step, without leaving a trace."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.models.base import GenerativeModel

RANDOM_OPERATORS = (
    "rand", "normal", "bernoulli", "uniform", "dropout", "multinomial", "exponential",
)  # fmt: skip
"""Parts of the names of torch's random operators."""


@contextmanager
def restore_afterwards(model: GenerativeModel) -> Iterator[None]:
    """Restore the model's tensors, its gradients and the random state on exit."""
    before = deepcopy(model.state_dict())
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            model.load_state_dict(before)
            for parameter in model.parameters():
                parameter.grad = None


@contextmanager
def count_backward_passes() -> Iterator[list[None]]:
    """Yield a list that grows by one with each backward pass inside."""
    calls: list[None] = []
    original = torch.autograd.backward

    def counted(*args: Any, **options: Any) -> None:
        calls.append(None)
        original(*args, **options)

    torch.autograd.backward = counted
    try:
        yield calls
    finally:
        torch.autograd.backward = original


class RandomDraws(TorchDispatchMode):
    """Hashes the results of torch's random operators inside, unless they are a few numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.digests: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if (
            any(part in name for part in RANDOM_OPERATORS)
            and isinstance(result, Tensor)
            and result.numel() >= 16
        ):
            self.digests.append(hashlib.sha256(tensor_bytes(result)).hexdigest())
        return result


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values, in order."""
    flat = tensor.detach().cpu().contiguous().flatten()
    data: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return data
