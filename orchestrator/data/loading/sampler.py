"""The global order of samples: a pure function of (seed, shard sizes, n) for any number of workers.

An epoch visits each of the N samples exactly once. In each epoch the shards are permuted and
concatenated into one sequence, which is rotated by a random offset and cut into ``num_streams``
runs of consecutive samples whose lengths differ by at most one; a random permutation assigns the
runs to the shuffle streams. Position p of the epoch belongs to stream p % num_streams. Each stream
goes through its run in windows of ``window_size`` samples, and each window is shuffled.

A batch is n .. n + batch_size, and rank r of W takes the positions n + r, n + r + W, ...: if W
divides num_streams and n, it stays within its own streams for a whole epoch, and so within its own
windows. A window is a run of consecutive samples in one or two shards, read with one request.

The first window of stream s is shortened to 1 + s * window_size / num_streams samples. So the
streams reach their next windows one after the other rather than all at once, and the first batches
read little.

Memory is a few numbers per shard and nothing per sample. Position n is located by shuffling one
window.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy
from numpy.typing import ArrayLike

from orchestrator.data.format.sample_table import Integers
from orchestrator.seeding import seed_of

NUM_STREAMS = 96
"""Divisible by 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 and 96 workers."""


@dataclass(frozen=True, slots=True)
class SampleLocation:
    """Shard of a sample and its index in it."""

    shard: int
    index: int


class Window(NamedTuple):
    """Consecutive samples of one shuffle stream in one epoch, in training order."""

    epoch: int
    stream: int
    start: int
    """Number of the first sample within the stream, counted from 0 in each epoch."""
    shards: Integers
    indices: Integers

    @property
    def end(self) -> int:
        """Number within the stream of the first sample after the window."""
        return self.start + len(self.shards)


class _EpochLayout(NamedTuple):
    """Everything that all positions of an epoch share."""

    shards: Integers
    shard_starts: Integers
    """Start of each shard in the sequence, and the end of the sequence."""
    run_starts: Integers
    """Start of each stream's run in the sequence before the rotation."""
    rotation: int


class SampleOrder:
    """The order of samples over all epochs. Safe to share between threads."""

    def __init__(
        self,
        shard_sizes: ArrayLike,
        seed: int,
        *,
        num_streams: int = NUM_STREAMS,
        window_size: int = 1 << 40,
    ) -> None:
        """Order samples in shards of ``shard_sizes``, with ``window_size`` samples per window.

        A window that is longer than a stream shuffles the whole stream.
        """
        self._shard_sizes = numpy.asarray(shard_sizes, numpy.int64)
        self._seed = seed
        self.num_streams = num_streams
        self.num_samples = int(self._shard_sizes.sum())
        assert self.num_samples > 0, "a set without samples has no order"
        self.window_size = min(window_size, self._stream_length(0))
        self._layout = lru_cache(2)(self._make_layout)

    def locate(self, n: int) -> SampleLocation:
        """Return the location of sample ``n`` >= 0, counted over all epochs."""
        window = self.window_at(n)
        within = n % self.num_samples // self.num_streams - window.start
        return SampleLocation(int(window.shards[within]), int(window.indices[within]))

    def window_at(self, n: int) -> Window:
        """Return the window that contains sample ``n``."""
        epoch, position = divmod(n, self.num_samples)
        number, stream = divmod(position, self.num_streams)
        size = self.window_size
        shortage = size - (1 + stream * size // self.num_streams)
        """Samples that the stream's first window lacks."""
        first = (number + shortage) // size * size - shortage
        start, end = max(0, first), min(first + size, self._stream_length(stream))
        layout = self._layout(epoch)
        key = seed_of("window", self._seed, epoch, stream, start)
        found = layout.run_starts[stream] + start + permutation(end - start, key)
        found = (found + layout.rotation) % self.num_samples
        order = numpy.searchsorted(layout.shard_starts, found, side="right") - 1
        indices = found - layout.shard_starts[order]
        return Window(epoch, stream, start, layout.shards[order], indices)

    # Changing the strings of the keys would change the order of every run.
    def _make_layout(self, epoch: int) -> _EpochLayout:
        shards = permutation(len(self._shard_sizes), seed_of("shards", self._seed, epoch))
        shard_starts = _starts(self._shard_sizes[shards])
        streams = permutation(self.num_streams, seed_of("lanes", self._seed, epoch))
        run_starts = numpy.empty(self.num_streams, numpy.int64)
        run_starts[streams] = _starts([self._stream_length(int(s)) for s in streams])[:-1]
        rotation = seed_of("turn", self._seed, epoch) % self.num_samples
        return _EpochLayout(shards, shard_starts, run_starts, rotation)

    def _stream_length(self, stream: int) -> int:
        """Return the number of positions p of an epoch with p % num_streams == stream."""
        return (self.num_samples - stream + self.num_streams - 1) // self.num_streams


def _starts(lengths: ArrayLike) -> Integers:
    """Return the start of each run when runs of ``lengths`` are concatenated, then the end."""
    return numpy.concatenate(([0], numpy.cumsum(numpy.asarray(lengths, numpy.int64))))


def permutation(size: int, key: int) -> Integers:
    """Return the permutation of range(``size``) for ``key``: numbers sorted by their hashes.

    The hash is splitmix64 (Steele et al. 2014), so the permutation is the same on every machine
    and with every version of numpy.
    """
    numbers = numpy.arange(1, size + 1, dtype=numpy.uint64)
    value = numbers * numpy.uint64(0x9E3779B97F4A7C15) + numpy.uint64(key % (1 << 64))
    value = (value ^ (value >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return numpy.argsort(value ^ (value >> numpy.uint64(31)), kind="stable")
