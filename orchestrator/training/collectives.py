"""Exchange values between the ranks; every rank makes each call."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather(value: T, world_size: int) -> list[T]:
    """Gather a value of every rank, by rank."""
    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, value)
    return gathered


def gather_tensors(tensor: Tensor, world_size: int) -> list[Tensor]:
    """Gather tensors of the same shape from every rank, by rank."""
    if world_size == 1:
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(gathered, tensor)
    return gathered


def mean_over_ranks(values: Iterable[Tensor], world_size: int) -> Tensor:
    """Average single numbers over ranks: float32 (N,) for N values."""
    means = torch.stack([value.float() for value in values])
    if world_size > 1:
        dist.all_reduce(means)
        means /= world_size
    return means
