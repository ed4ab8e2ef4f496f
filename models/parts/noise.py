"""Per-sample random numbers: a pure function of a key and the sample's position, or seed.

A generator's stream depends on earlier draws, and thus on how a batch is split over workers and
microbatches. Here each number is a hash of (key, position, index), so that a sample gets the same
noise on any worker and device. In training, the position is that in the global order; when images
are drawn, it is the seed of an image. Nothing here fixes the size of the batch, so that a traced
program takes any.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom
Number Generators", OOPSLA 2014), applied once to the position and once more to the index.
"""

import hashlib
import math

import torch
from torch import Tensor

_WEYL = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, the odd number next to 2**64 / golden ratio
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""0xBF58476D1CE4E5B9 and 0x94D049BB133111EB; torch's integers are signed."""


def uniform(positions: Tensor, key: str, shape: tuple[int, ...]) -> Tensor:
    """Return float32 (B, *shape), uniform in (0, 1) with 2**23 values, excluding both ends.

    Args:
        positions: the samples' positions in the global order, or the images' seeds, int64 (B,).
        key: the purpose, including the seed; different keys give independent numbers.
    """
    bits = _bits(positions, key, math.prod(shape))
    values = (_shifted(bits, 41).float() + 0.5) * 2.0**-23
    return values.view(positions.shape[0], *shape)


def normal(positions: Tensor, key: str, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal float32 (B, *shape); see ``uniform``.

    By the Box-Muller transform: at most 5.8 in absolute value.
    """
    pairs = uniform(positions, key, (2, math.prod(shape)))
    values = (-2 * pairs[:, 0].log()).sqrt() * (2 * math.pi * pairs[:, 1]).cos()
    return values.view(positions.shape[0], *shape)


def integers(positions: Tensor, key: str, count: int) -> Tensor:
    """Return integers uniform in 0 .. count - 1, int64 (B,); see ``uniform``."""
    return _shifted(_bits(positions, key, 1)[:, 0], 1) % count


def dropout(x: Tensor, probability: float, positions: Tensor, key: str) -> Tensor:
    """Set each value of ``x``, (B, ...), to 0 with ``probability``; scale the others up.

    As ``torch.nn.functional.dropout`` in training, but the mask of a sample depends on its position
    and ``key`` alone; see ``uniform``.
    """
    kept = uniform(positions, key, tuple(x.shape[1:])) >= probability
    return torch.where(kept, x / (1 - probability), 0.0)


def _bits(positions: Tensor, key: str, count: int) -> Tensor:
    """Return 64 random bits each, int64 (B, count)."""
    samples = _mixed(positions * _WEYL + _start(key))
    indices = torch.arange(1, count + 1, device=positions.device)
    return _mixed(samples[:, None] + indices * _WEYL)


def _start(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") - 2**63


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
