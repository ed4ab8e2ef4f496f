"""The images of a job as one worker sees them: what order.py says, read in windows."""

import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.loading.batcher import Batcher, SampleRequest
from orchestrator.data.loading.compatibility import check_kind, check_training_set
from orchestrator.data.loading.sample_loader import SampleLoader, Quarantine
from orchestrator.data.loading.sampler import Integers, SampleOrder, Window
from orchestrator.data.loading.window_reader import PendingWindow, WindowReader, read_samples
from orchestrator.models.base import Batch
from orchestrator.seeding import seed_of
from orchestrator.storage.cached import CachedStorage, CacheEntry
from orchestrator.storage.open import open_storage
from orchestrator.storage.retrying import RetryingStorage, ReadCounters


class ShardStream:
    """The training and validation images of a job, as one of ``world_size`` workers sees them.

    All workers together see each sample of each global batch once, whatever their number, with
    the same augmentation: both depend on the sample's position in the global order alone.
    """

    def __init__(self, job: Job, rank: int, world_size: int, pin_memory: bool = False) -> None:
        """Open the job's sets; read nothing but their indexes.

        Raises:
            DataError: a set is missing, damaged, or does not fit the model or the batch.
        """
        assert job.train.batch_size >= world_size, "the job file's rules say so"
        self._job, self._rank, self._world_size = job, rank, world_size
        self._counters = ReadCounters()
        self._patient: list[RetryingStorage] = []
        self._train = self._opened(job.data.train)
        validation = job.data.validation
        self._validation = self._opened(validation) if validation else None
        for packed in (self._train, self._validation):
            if packed is not None:
                check_kind(packed, job)
        check_training_set(self._train, job)
        # Unpaired images are drawn from two orders, whose windows share the memory.
        window = job.data.read_size // (2 if "unpaired" in job.model.takes else 1)
        self._window = _samples_in(window, self._train)
        self._lanes = _lanes_for(job.data.shuffle_streams, window, self._train)
        self._order = self._ordered("order")
        self._quarantine = Quarantine(job.data.max_corrupt_fraction * self.num_samples / world_size)
        self._loader = SampleLoader(job, self._quarantine)
        self._mine = range(rank, job.train.batch_size, world_size)
        """This worker's places within each batch."""
        share = len(self._mine)
        self._batcher = Batcher(job, self._loader, share, pin_memory=pin_memory)

    @property
    def num_samples(self) -> int:
        """Samples of the training set: the length of an epoch."""
        return self._train.num_samples

    @property
    def num_validation(self) -> int:
        """Samples of the validation set; 0 if there is none."""
        return self._validation.num_samples if self._validation else 0

    def counts(self) -> dict[str, float]:
        """What this worker has read and waited for so far; the same keys on every worker."""
        read = self._counters.snapshot()
        return {
            "bytes_read": read.bytes_read,
            "retries": read.retries,
            "cache_hits": read.cache_hits,
            "cache_misses": read.cache_misses,
            "corrupt_samples": len(self._quarantine.reasons),
            "read_wait_s": self._batcher.read_wait_s,
        }

    def corrupt_samples(self) -> list[str]:
        """A line for each damaged sample that this worker has met and replaced."""
        return list(self._quarantine.reasons.values())

    def training(self, start: int) -> Generator[Batch, None, None]:
        """This worker's share of the batches from image ``start`` on, endlessly.

        Of each batch it is every world_size-th image from the rank-th on: where the batch is no
        multiple of the workers, the first ones have one more. A damaged sample is replaced; see
        loading.py. Close the iterator to stop its threads.

        Raises:
            DataError: in the turn of the sample that could not be read, or of the one damaged
                sample that was too many.
        """
        reader = WindowReader(self._train)
        wanted = self._iter_requests(reader, self._order, start)
        if "unpaired" in self._job.model.takes:
            strangers = self._iter_requests(reader, self._ordered("strangers"), start)
            wanted = (
                one._replace(stranger=(other.opened, other.within))
                for one, other in zip(wanted, strangers, strict=True)
            )
        return self._batches(reader, wanted, augmented=True)

    def validation(self) -> Iterator[Batch]:
        """This worker's share of the validation set, in its order, not augmented.

        Rank r of W has the samples from r N / W to (r + 1) N / W: shares may differ by one image
        or be empty.
        """
        if self._validation is None:
            return iter(())
        total, world_size = self.num_validation, self._world_size
        mine = range(self._rank * total // world_size, (self._rank + 1) * total // world_size)
        reader = WindowReader(self._validation)
        size = _samples_in(self._job.data.read_size, self._validation)
        wanted = _in_order(reader, mine, size)
        return self._batches(reader, wanted, augmented=False)

    def examples(self, count: int) -> Batch:
        """Images spread evenly over the validation set, or else the training set, not augmented.

        The same on every rank; fewer than ``count`` if the set is smaller.
        """
        packed = self._validation or self._train
        step = max(1, packed.num_samples // count)
        positions = range(0, packed.num_samples, step)[:count]
        samples = read_samples(packed, *_places(packed, positions))
        return self._batcher.batch(packed, samples, list(positions))

    def _opened(self, uri: str) -> ShardSet:
        """The set at ``uri``, read with the job's patience and through its cache."""
        data = self._job.data
        patient = RetryingStorage(open_storage(uri), data.retry_timeout_s, self._counters)
        self._patient.append(patient)
        packed = open_set(uri, patient)
        if data.cache is None:
            return packed
        entries = {s.name: CacheEntry(s.sha256, s.num_bytes) for s in packed.index.shards}
        folder, limit = Path(data.cache.folder), data.cache.limit
        cached = CachedStorage(patient, folder, limit, entries, self._counters)
        return replace(packed, storage=cached)

    def _ordered(self, purpose: str) -> SampleOrder:
        seed, sizes = seed_of(purpose, self._job.train.seed), self._train.shard_sizes
        return SampleOrder(sizes, seed, lanes=self._lanes, window=self._window)

    def _iter_requests(
        self, reader: WindowReader, order: SampleOrder, start: int
    ) -> Iterator[SampleRequest]:
        """This worker's samples from image ``start`` on; opens each window that it comes to."""
        world_size, lanes, total = self._world_size, order.lanes, order.num_samples
        size = self._job.train.batch_size
        # The worker's samples in a lane lie so far apart; with its own lanes all are its own.
        every = world_size // math.gcd(lanes, world_size) if size % world_size == 0 else 1
        windows: list[PendingWindow | None] = [None] * lanes
        for n in (first + i for first in itertools.count(start, size) for i in self._mine):
            epoch, position = divmod(n, total)
            number, lane = divmod(position, lanes)
            opened = windows[lane]
            if opened is None or opened.window.epoch != epoch or number >= opened.window.end:
                window = order.window(n)
                mine = range(number - window.start, len(window.shards), every)
                opened = windows[lane] = reader.open(window, mine)
            yield SampleRequest(opened, number - opened.window.start, n)

    def _batches(
        self, reader: WindowReader, wanted: Iterator[SampleRequest], *, augmented: bool
    ) -> Generator[Batch, None, None]:
        batches = self._batcher.batches(
            reader.packed, wanted, augmented=augmented, waiting_for=self._waiting_for
        )
        try:
            for batch in batches:  # noqa: UP028 - `yield from` would close the batches first
                yield batch
        finally:
            if augmented:  # a training that ends waits for no store
                for patient in self._patient:
                    patient.close()
            reader.close()
            batches.close()

    def _waiting_for(self) -> str:
        requests = [patient.oldest_request() for patient in self._patient]
        told = [request for request in requests if request is not None]
        what = "waits for " + " and ".join(told) if told else "is decoding; nothing is being read"
        return f"rank {self._rank} {what}"


def _samples_in(num_bytes: int, packed: ShardSet) -> int:
    """Samples of mean size in ``num_bytes``: at least one."""
    return max(1, num_bytes * packed.num_samples // max(1, packed.num_bytes))


def _lanes_for(most: int, window_bytes: int, packed: ShardSet) -> int:
    """``most`` lanes, or a half, a quarter, ... where the set has no window for each of them.

    Else a small set would be read in many small requests: each takes 2 to 3 ms of CPU.
    """
    lanes = most
    while lanes % 2 == 0 and lanes * window_bytes > packed.num_bytes:
        lanes //= 2
    return lanes


def _places(packed: ShardSet, positions: range) -> tuple[Integers, Integers]:
    """Shard and index of the samples with these numbers in the set."""
    starts = numpy.cumsum((0, *packed.shard_sizes))
    numbers = numpy.asarray(positions)
    shards = numpy.searchsorted(starts, numbers, side="right") - 1
    return shards, numbers - starts[shards]


def _in_order(reader: WindowReader, positions: range, size: int) -> Iterator[SampleRequest]:
    """The samples with these numbers in the set, in windows of ``size``."""
    for first in range(positions.start, positions.stop, size):
        numbers = range(first, min(first + size, positions.stop))
        window = Window(0, 0, first, *_places(reader.packed, numbers))
        opened = reader.open(window, range(len(numbers)))
        for within, number in enumerate(numbers):
            yield SampleRequest(opened, within, number)
