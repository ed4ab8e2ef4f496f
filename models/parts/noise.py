"""Per-sample random numbers: a pure function of a key and the sample's position.

A generator's stream depends on earlier draws, and thus on how a batch is split over workers and
microbatches. Here each number is a hash of (key, position, index), so that a sample gets the same
noise on any worker and device.

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
        positions: the samples' positions in the global order, int64 (B,).
        key: the purpose, including the seed; different keys give independent numbers.
    """
    count = math.prod(shape)
    samples = _mixed(positions * _WEYL + _start(key))
    indices = torch.arange(1, count + 1, device=positions.device)
    bits = _mixed(samples[:, None] + indices * _WEYL)
    values = (_shifted(bits, 41).float() + 0.5) * 2.0**-23
    return values.view(len(positions), *shape)


def normal(positions: Tensor, key: str, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal float32 (B, *shape); see ``uniform``.

    By the Box-Muller transform: at most 5.8 in absolute value.
    """
    pairs = uniform(positions, key, (2, math.prod(shape)))
    values = (-2 * pairs[:, 0].log()).sqrt() * (2 * math.pi * pairs[:, 1]).cos()
    return values.view(len(positions), *shape)


def _start(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") - 2**63


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
