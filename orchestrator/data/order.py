"""Which sample is the n-th: a pure function of (seed, shard sizes, n), the same for any workers.

An epoch is a pass over all N samples, each exactly once. In each epoch the shards are put in a
new order and laid end to end as one sequence, which is cut into LANES runs of neighbours, equal
in length to within one; the runs are dealt to the lanes in a new order too. Position i of the
epoch belongs to lane i % LANES, which goes through its run in an order of its own.

A batch is n .. n + batch_size, and rank r of W takes the positions n + r, n + r + W, ...: where
W divides LANES and n, it stays in its own lanes, and so in its own parts of the shards.
Every order is a keyed permutation that is computed place by place, so that a set of any size
can be entered anywhere at once and in constant memory.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from orchestrator.randomness import seed_of

LANES = 240
"""Divisible by 1-6, 8, 10, 12, 15, 16, 20, 24, 30, 40, 48, 60, 80, 120 and 240 workers."""
ROUNDS = 8
FEWEST_BITS = 4
"""Halves of a single bit mix too badly: some places of a short lane came up three times too
rarely."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample is."""

    shard: int
    index: int


class _Layout(NamedTuple):
    """What is the same for all positions of an epoch."""

    epoch: int
    shards: list[int]
    shard_starts: list[int]
    """Where each shard of ``shards`` starts in the sequence, and last the sequence's end."""
    lane_starts: list[int]
    """Where each lane's run starts in the sequence."""


class Order:
    """The order of samples for ever; safe to share between threads."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, lanes: int = LANES) -> None:
        self._shard_sizes = tuple(shard_sizes)
        self._seed = seed
        self._lanes = lanes
        self.num_samples = sum(self._shard_sizes)
        assert self.num_samples > 0, "there is no order of nothing"
        self._layout = self._laid_out(0)

    def at(self, n: int) -> Place:
        """The place of the ``n``-th sample, ``n`` >= 0 and counted through all epochs."""
        epoch, position = divmod(n, self.num_samples)
        layout = self._layout
        if layout.epoch != epoch:
            self._layout = layout = self._laid_out(epoch)
        within, lane = divmod(position, self._lanes)
        key = seed_of("lane", self._seed, epoch, lane)
        found = layout.lane_starts[lane] + permuted(within, self._lane_length(lane), key)
        number = bisect_right(layout.shard_starts, found) - 1
        return Place(layout.shards[number], found - layout.shard_starts[number])

    def _laid_out(self, epoch: int) -> _Layout:
        count = len(self._shard_sizes)
        key = seed_of("shards", self._seed, epoch)
        shards = [permuted(i, count, key) for i in range(count)]
        shard_starts = [0, *accumulate(self._shard_sizes[shard] for shard in shards)]
        key = seed_of("lanes", self._seed, epoch)
        lane_starts = [0] * self._lanes
        start = 0
        for lane in (permuted(i, self._lanes, key) for i in range(self._lanes)):
            lane_starts[lane] = start
            start += self._lane_length(lane)
        return _Layout(epoch, shards, shard_starts, lane_starts)

    def _lane_length(self, lane: int) -> int:
        """How many positions i of an epoch have i % lanes == lane."""
        return (self.num_samples - lane + self._lanes - 1) // self._lanes


def permuted(i: int, size: int, key: int) -> int:
    """Where ``i`` goes in the permutation of range(``size``) that ``key`` names.

    A Feistel network over the next power of two (Luby and Rackoff 1988), walked on until it
    leads into the range (Black and Rogaway 2002): under two turns on average, but for tiny ones.
    """
    assert 0 <= i < size
    if size == 1:
        return 0
    bits = max(FEWEST_BITS, (size - 1).bit_length())
    while True:
        i = _feistel(i, bits, key)
        if i < size:
            return i


def _feistel(value: int, bits: int, key: int) -> int:
    """A permutation of range(2**bits); the halves may differ by a bit and change places."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = value >> right_bits, value & ((1 << right_bits) - 1)
    for number in range(ROUNDS):
        mixed = left ^ (_mix(right + key + number * 0x9E3779B97F4A7C15) & ((1 << left_bits) - 1))
        left, right = right, mixed
        left_bits, right_bits = right_bits, left_bits
    return left << right_bits | right


def _mix(value: int) -> int:
    """The finalizer of splitmix64 (Steele et al. 2014): all input bits reach all output bits."""
    value &= _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31
