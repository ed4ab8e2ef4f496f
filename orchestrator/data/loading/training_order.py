"""The training images of one worker, in their order, as requests for samples of windows."""

import itertools
import math
from collections.abc import Iterator

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading.batcher import SampleRequest
from orchestrator.data.loading.mixture import Draw, Mixture, shares_of
from orchestrator.data.loading.sampler import SampleOrder
from orchestrator.data.loading.training_set import TrainingSet
from orchestrator.data.loading.window_reader import PendingWindow, WindowReader
from orchestrator.seeding import seed_of


class TrainingOrder:
    """The order of one set (sampler.py), or of several (mixture.py), for one worker."""

    def __init__(self, job: Job, source: TrainingSet, rank: int, world_size: int) -> None:
        """Divide the memory for windows among the sets by their shares of the images."""
        self._job, self._source, self._rank, self._world_size = job, source, rank, world_size
        # Unpaired images come from two orders, whose windows share the memory.
        read_size = job.data.read_size // (2 if "unpaired" in job.model.takes else 1)
        num_lanes = job.data.shuffle_streams
        self._num_streams: list[int] = []
        self._window_sizes: list[int] = []
        for packed, share in zip(source.sets, shares_of(source.weights), strict=True):
            memory = int(num_lanes * read_size * share)
            streams = _fit_num_streams(num_lanes, read_size, min(packed.num_bytes, memory))
            self._num_streams.append(streams)
            self._window_sizes.append(samples_in(min(read_size, memory // streams), packed))
        self._mixture = None
        if len(source.sets) > 1:
            self._mixture = Mixture(
                source.weights,
                job.train.seed,
                num_lanes=num_lanes,
                num_streams=self._num_streams,
            )

    def sample_orders(self, seed_key: str) -> list[SampleOrder]:
        """Return the order of each set by itself; ``seed_key`` makes different ones."""
        seed, sets = self._job.train.seed, self._source.sets
        # Changing the keys would change the order of every run.
        keys = (
            [(seed_key, seed, n) for n in range(len(sets))] if self._mixture else [(seed_key, seed)]
        )
        parts = zip(sets, keys, self._num_streams, self._window_sizes, strict=True)
        return [
            SampleOrder(packed.shard_sizes, seed_of(*key), num_streams=streams, window_size=size)
            for packed, key, streams, size in parts
        ]

    def requests(self, reader: WindowReader, seed_key: str, start: int) -> Iterator[SampleRequest]:
        """Yield this worker's samples from image ``start`` on; start reading each window."""
        orders, sets, every = self.sample_orders(seed_key), self._source.sets, self._every()
        windows: list[list[PendingWindow | None]] = [[None] * n for n in self._num_streams]
        for n, part, stream, drawn in self._draws(start):
            order = orders[part]
            epoch, position = divmod(drawn, order.num_samples)
            number = position // order.num_streams
            pending = windows[part][stream]
            if pending is None or pending.window.epoch != epoch or number >= pending.window.end:
                window = order.window_at(drawn)
                requested = range(number - window.start, len(window.shards), every)
                pending = reader.start(sets[part], window, requested)
                windows[part][stream] = pending
            yield SampleRequest(pending, number - pending.window.start, n)

    def _draws(self, start: int) -> Iterator[Draw]:
        """Yield what this worker draws from image ``start`` on."""
        size, world_size = self._job.train.batch_size, self._world_size
        if self._mixture is not None:
            for draw in self._mixture.draws(start):
                if (draw.position - start) % size % world_size == self._rank:
                    yield draw
        else:
            share, num_streams = range(self._rank, size, world_size), self._num_streams[0]
            for n in (first + i for first in itertools.count(start, size) for i in share):
                yield Draw(n, 0, n % num_streams, n)

    def _every(self) -> int:
        """Return the distance of the worker's samples within a stream.

        1 if it has the stream for itself; also if other workers take samples from the stream and
        the distance varies, so that all of its samples are read.
        """
        if self._mixture is not None or self._job.train.batch_size % self._world_size:
            return 1
        return self._world_size // math.gcd(self._num_streams[0], self._world_size)


def samples_in(num_bytes: int, packed: ShardSet) -> int:
    """Return the number of samples of mean size in ``num_bytes``, at least 1."""
    return max(1, num_bytes * packed.num_samples // max(1, packed.num_bytes))


def _fit_num_streams(num_streams: int, read_size: int, num_bytes: int) -> int:
    """Halve ``num_streams`` while it is even and ``num_bytes`` lack a window for each stream.

    Otherwise a small set would be read in many small requests: each takes 2 to 3 ms of CPU.
    """
    while num_streams % 2 == 0 and num_streams * read_size > num_bytes:
        num_streams //= 2
    return num_streams
