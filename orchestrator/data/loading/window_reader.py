"""Read windows of consecutive samples ahead, in threads, with few large requests."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy

from orchestrator.data.format.sample_table import Integers
from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading.sampler import SampleLocation, Window

READ_THREADS = 8
"""Concurrent requests per worker."""
MAX_GAP_BYTES = 64 << 10
"""Unneeded bytes between two samples that are read along rather than split into two requests."""
MAX_GAP_FRACTION = 0.25
"""Larger ones are read along if they stay below this fraction of the samples before them: in the
training part of a split set, every tenth sample or so is held out."""
MAX_REQUEST_BYTES = 16 << 20


class EncodedSample(NamedTuple):
    """Tar bytes of one sample, not yet verified, and their expected CRC-32."""

    location: SampleLocation
    data: memoryview
    crc32: int


class PendingWindow(NamedTuple):
    """A window of which some samples are being read, or have been read."""

    packed: ShardSet
    window: Window
    requested: range
    """Numbers of these samples in the window."""
    reading: "Future[list[EncodedSample]]"

    @property
    def is_read(self) -> bool:
        """Whether ``sample`` returns without waiting."""
        return self.reading.done()

    def sample(self, within: int) -> EncodedSample:
        """Wait for the window's sample ``within`` and return it. Raises what reading raised."""
        return self.reading.result()[self.requested.index(within)]


class WindowReader:
    """Reads windows of a job's sets in its own threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")

    def start(self, packed: ShardSet, window: Window, requested: range) -> PendingWindow:
        """Start reading the samples of ``window`` with the numbers ``requested`` in it."""
        shards, indices = window.shards[requested], window.indices[requested]
        reading = self._pool.submit(read_samples, packed, shards, indices)
        return PendingWindow(packed, window, requested, reading)

    def close(self) -> None:
        """Cancel the requests that have not started and wait for the others."""
        self._pool.shutdown(cancel_futures=True)


def read_samples(packed: ShardSet, shards: Integers, indices: Integers) -> list[EncodedSample]:
    """Read the samples at these locations, in this order, with few requests.

    Raises DataError if a shard is missing or its table is corrupt; the samples are not verified.
    """
    found: dict[int, EncodedSample] = {}
    by_location = numpy.lexsort((indices, shards))
    for shard in numpy.unique(shards).tolist():
        numbers = by_location[shards[by_location] == shard]
        table = packed.table(shard)
        starts, ends = table.starts[indices[numbers]], table.ends[indices[numbers]]
        columns = (numbers, indices[numbers], starts, ends, table.crc32[indices[numbers]])
        spans = list(zip(*(column.tolist() for column in columns), strict=True))
        for first, last in _group_requests(starts, ends):
            base, end = spans[first][2], spans[last - 1][3]
            data = memoryview(packed.get_range(packed.index.shards[shard].name, base, end - base))
            for number, index, start, end, crc in spans[first:last]:
                found[number] = EncodedSample(
                    SampleLocation(shard, index), data[start - base : end - base], crc
                )
    return [found[number] for number in range(len(shards))]


def _group_requests(starts: Integers, ends: Integers) -> Iterator[tuple[int, int]]:
    """Yield the slices of the samples at ascending ``starts`` to ``ends`` to read together."""
    first, gaps = 0, 0
    for last in range(1, len(starts) + 1):
        gap = 0 if last == len(starts) else int(starts[last] - ends[last - 1])
        needed = int(ends[last - 1] - starts[first]) - gaps
        if (
            last == len(starts)
            or (gap > MAX_GAP_BYTES and gaps + gap > needed * MAX_GAP_FRACTION)
            or ends[last] - starts[first] > MAX_REQUEST_BYTES
        ):
            yield first, last
            first, gaps = last, 0
        else:
            gaps += gap
