"""Which sample is the n-th: a pure function of (seed, shard sizes, n), the same for any workers.

An epoch is a pass over all N samples, each exactly once. In each epoch the shards are put in a
new order and laid end to end as one sequence, which is turned by a random distance and cut into
``lanes`` runs of neighbours, equal in length to within one; the runs are dealt to the lanes in a
new order too. Position p of the epoch belongs to lane p % lanes, which goes through its run in
windows of ``window`` samples, each window in an order of its own.

A batch is n .. n + batch_size, and rank r of W takes the positions n + r, n + r + W, ...: where
W divides the lanes and n, it stays in its own lanes within an epoch, and so in its own windows.
A window is a run of neighbours in a shard or two: what a reader gets with one request.

The first window of lane l is cut short, to 1 + l * window / lanes samples. So the lanes come to
their next windows one after the other and not all at once, and the first batches need little.

Memory is a few numbers for each shard and none for a sample. Position n is found by shuffling
one window.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy
from numpy.typing import ArrayLike, NDArray

from orchestrator.seeding import seed_of

LANES = 96
"""Divisible by 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 and 96 workers."""

Integers = NDArray[numpy.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample is."""

    shard: int
    index: int


class Window(NamedTuple):
    """Neighbouring samples of one lane in one epoch, in the order of the training."""

    epoch: int
    lane: int
    start: int
    """Which sample of the lane is the first of the window, counted from 0 in each epoch."""
    shards: Integers
    indices: Integers

    @property
    def end(self) -> int:
        """Which sample of the lane is the first that comes after the window."""
        return self.start + len(self.shards)

    def place(self, within: int) -> Place:
        """Where the window's sample number ``within`` is."""
        return Place(int(self.shards[within]), int(self.indices[within]))


class _Layout(NamedTuple):
    """What is the same for all positions of an epoch."""

    shards: Integers
    shard_starts: Integers
    """Where each shard of ``shards`` starts in the sequence, and last the sequence's end."""
    lane_starts: Integers
    """Where each lane's run starts in the sequence, before it is turned."""
    turn: int


class Order:
    """The order of samples for ever; safe to share between threads."""

    def __init__(
        self, shard_sizes: ArrayLike, seed: int, *, lanes: int = LANES, window: int = 1 << 40
    ) -> None:
        """Order samples in shards of ``shard_sizes``, with ``window`` samples to a window.

        A window that is longer than a lane shuffles the whole lane.
        """
        self._shard_sizes = numpy.asarray(shard_sizes, numpy.int64)
        self._seed = seed
        self.lanes = lanes
        self.num_samples = int(self._shard_sizes.sum())
        assert self.num_samples > 0, "there is no order of nothing"
        self.window_samples = min(window, self._lane_length(0))
        self._layout = lru_cache(2)(self._laid_out)

    def at(self, n: int) -> Place:
        """The place of the ``n``-th sample, ``n`` >= 0 and counted through all epochs."""
        window = self.window(n)
        within = n % self.num_samples // self.lanes - window.start
        return window.place(within)

    def window(self, n: int) -> Window:
        """The window that holds the ``n``-th sample."""
        epoch, position = divmod(n, self.num_samples)
        number, lane = divmod(position, self.lanes)
        size = self.window_samples
        missing = size - (1 + lane * size // self.lanes)
        """What the lane's first window is short of."""
        start = max(0, (number + missing) // size * size - missing)
        end = min((number + missing) // size * size - missing + size, self._lane_length(lane))
        layout = self._layout(epoch)
        key = seed_of("window", self._seed, epoch, lane, start)
        found = layout.lane_starts[lane] + start + shuffled(end - start, key)
        found = (found + layout.turn) % self.num_samples
        order = numpy.searchsorted(layout.shard_starts, found, side="right") - 1
        indices = found - layout.shard_starts[order]
        return Window(epoch, lane, start, layout.shards[order], indices)

    def _laid_out(self, epoch: int) -> _Layout:
        shards = shuffled(len(self._shard_sizes), seed_of("shards", self._seed, epoch))
        shard_starts = _starts(self._shard_sizes[shards])
        lanes = shuffled(self.lanes, seed_of("lanes", self._seed, epoch))
        lane_starts = numpy.empty(self.lanes, numpy.int64)
        lane_starts[lanes] = _starts([self._lane_length(int(lane)) for lane in lanes])[:-1]
        turn = seed_of("turn", self._seed, epoch) % self.num_samples
        return _Layout(shards, shard_starts, lane_starts, turn)

    def _lane_length(self, lane: int) -> int:
        """How many positions p of an epoch have p % lanes == lane."""
        return (self.num_samples - lane + self.lanes - 1) // self.lanes


def _starts(lengths: ArrayLike) -> Integers:
    """Where things of these lengths start when laid end to end, and last where they end."""
    return numpy.concatenate(([0], numpy.cumsum(numpy.asarray(lengths, numpy.int64))))


def shuffled(size: int, key: int) -> Integers:
    """The permutation of range(``size``) that ``key`` names: numbers sorted by their hashes.

    The hash is splitmix64 (Steele et al. 2014), so the permutation is the same on every machine
    and with every version of numpy.
    """
    numbers = numpy.arange(1, size + 1, dtype=numpy.uint64)
    value = numbers * numpy.uint64(0x9E3779B97F4A7C15) + numpy.uint64(key % (1 << 64))
    value = (value ^ (value >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return numpy.argsort(value ^ (value >> numpy.uint64(31)), kind="stable")
