"""Windows of neighbouring samples, read ahead in threads with few and large requests."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy

from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading.sampler import Integers, Place, Window

READ_THREADS = 8
"""Requests under way at a time in each worker."""
LARGEST_GAP = 64 << 10
"""Bytes between two wanted samples that are rather read along than left out by a new request."""
LARGEST_REQUEST = 16 << 20


class Encoded(NamedTuple):
    """The tar bytes of one sample as they were read, and what their CRC-32 must be."""

    place: Place
    data: memoryview
    crc32: int


class Opened:
    """A window some of whose samples are being read, or have been."""

    def __init__(self, window: Window, wanted: range, reading: "Future[list[Encoded]]") -> None:
        self.window = window
        self._wanted = wanted
        self._reading = reading
        self._samples: list[Encoded] | None = None

    @property
    def done(self) -> bool:
        """Whether its samples are read."""
        return self._samples is not None or self._reading.done()

    def encoded(self, within: int) -> Encoded:
        """Sample number ``within`` of the window; waits until it is read.

        Raises what reading raised.
        """
        if self._samples is None:
            self._samples = self._reading.result()
        return self._samples[self._wanted.index(within)]


class WindowReader:
    """Reads windows of one set in threads of its own."""

    def __init__(self, packed: ShardSet) -> None:
        self.packed = packed
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")

    def open(self, window: Window, wanted: range) -> Opened:
        """Start reading the samples of ``window`` whose numbers in it are ``wanted``."""
        shards, indices = window.shards[wanted], window.indices[wanted]
        reading = self._pool.submit(read_places, self.packed, shards, indices)
        return Opened(window, wanted, reading)

    def close(self) -> None:
        """Read no more, and wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)


def read_places(packed: ShardSet, shards: Integers, indices: Integers) -> list[Encoded]:
    """The samples at these places, in this order, with as few requests as is sensible.

    Raises DataError if a shard is missing or its table is damaged; the samples are not checked.
    """
    found: dict[int, Encoded] = {}
    by_place = numpy.lexsort((indices, shards))
    for shard in numpy.unique(shards).tolist():
        numbers = by_place[shards[by_place] == shard]
        table = packed.table(shard)
        starts, ends = table.offsets[indices[numbers]], table.offsets[indices[numbers] + 1]
        columns = (numbers, indices[numbers], starts, ends, table.crc32[indices[numbers]])
        spans = list(zip(*(column.tolist() for column in columns), strict=True))
        for first, last in _requests(starts, ends):
            base, end = spans[first][2], spans[last - 1][3]
            data = memoryview(packed.get_range(packed.index.shards[shard].name, base, end - base))
            for number, index, start, end, crc in spans[first:last]:
                found[number] = Encoded(Place(shard, index), data[start - base : end - base], crc)
    return [found[number] for number in range(len(shards))]


def _requests(starts: Integers, ends: Integers) -> Iterator[tuple[int, int]]:
    """Which of the samples that lie at ``starts`` to ``ends``, rising, are read together."""
    first = 0
    for last in range(1, len(starts) + 1):
        if (
            last == len(starts)
            or starts[last] - ends[last - 1] > LARGEST_GAP
            or ends[last] - starts[first] > LARGEST_REQUEST
        ):
            yield first, last
            first = last
