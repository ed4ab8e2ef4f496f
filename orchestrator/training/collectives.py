"""Exchange values between the ranks; every rank makes each call.

Only tensors are sent: torch's collectives for objects unpickle, and so execute, what arrives.
"""

import json
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather(value: T, world_size: int) -> list[T]:
    """Gather a value of JSON's types of every rank, by rank; tuples arrive as lists."""
    if world_size == 1:
        return [value]
    text = bytearray(json.dumps(value).encode())
    found = gather_vectors(torch.frombuffer(text, dtype=torch.uint8), world_size)
    return [json.loads(bytes(each.numpy())) for each in found]


def gather_vectors(tensor: Tensor, world_size: int) -> list[Tensor]:
    """Gather a tensor (N,) of every rank, by rank, to the CPU; each may have another N."""
    if world_size == 1:
        return [tensor.cpu()]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    lengths = gather_tensors(torch.tensor(len(tensor), device=device), world_size)
    padded = torch.zeros(max(1, int(max(lengths))), dtype=tensor.dtype, device=device)
    padded[: len(tensor)] = tensor
    found = gather_tensors(padded, world_size)
    return [each[: int(length)].cpu() for each, length in zip(found, lengths, strict=True)]


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
