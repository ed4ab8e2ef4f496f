"""The images of a job as one worker gets them: in the order of sampler.py, read in windows."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.loading.batcher import Batcher, SampleRequest
from orchestrator.data.loading.compatibility import check_sets
from orchestrator.data.loading.sample_loader import Quarantine, SampleLoader
from orchestrator.data.loading.sampler import Window
from orchestrator.data.loading.training_order import TrainingOrder, samples_in
from orchestrator.data.loading.training_set import TrainingSet, open_training_sets
from orchestrator.data.loading.window_reader import WindowReader, read_samples
from orchestrator.models.base import Batch
from orchestrator.storage.base import Storage
from orchestrator.storage.cached import CachedStorage, CacheEntry
from orchestrator.storage.open import open_storage
from orchestrator.storage.retrying import ReadCounters, RetryingStorage


class ShardStream:
    """Training and validation images of a job for one of ``world_size`` workers.

    Together, the workers get each sample of each global batch once, with the same augmentation for
    any number of workers: both depend only on the sample's position in the global order.
    """

    def __init__(self, job: Job, rank: int, world_size: int, pin_memory: bool = False) -> None:
        """Open the job's sets; read only their indexes.

        Raises DataError if one is missing, corrupt, or does not fit the model or the batch size.
        """
        assert job.train.batch_size >= world_size, "config.rules checks this"
        self._job, self._rank, self._world_size = job, rank, world_size
        self._counters = ReadCounters()
        self._storages: list[RetryingStorage] = []
        self._train = open_training_sets(job.data, self._open)
        validation = job.data.validation
        self._validation = self._open(validation) if validation else None
        check_sets(self._train.sets, self._validation, job)
        self._order = TrainingOrder(job, self._train, rank, world_size)
        self._quarantine = Quarantine(job.data.max_corrupt_fraction * self.num_samples / world_size)
        loader = SampleLoader(job, self._quarantine)
        self._share = range(rank, job.train.batch_size, world_size)
        """Numbers of this worker's images in each batch."""
        self._batcher = Batcher(
            job, loader, len(self._share), self._describe_wait, pin_memory=pin_memory
        )

    @property
    def num_samples(self) -> int:
        """Number of samples of all training sets, which is the length of an epoch."""
        return self._train.num_samples

    def note(self, num_images: int) -> dict[str, object]:
        """Return the notes on a model that was trained on so many images."""
        notes = {**self._train.note(num_images), **self._train.preparation.note()}
        # Backwards, or of a model that makes images from noise, it is no input.
        takes_derived = self._job.model.translates and self._job.data.direction == "AtoB"
        if takes_derived and (kind := self._train.derived_input) is not None:
            notes["derived_input"] = kind
        return notes

    @property
    def num_validation(self) -> int:
        """Number of samples of the validation set; 0 without one."""
        return self._validation.num_samples if self._validation else 0

    def counts(self) -> dict[str, float]:
        """Return this worker's read counters so far; the keys are the same on every worker."""
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
        """Return a line for each corrupt sample that this worker has replaced."""
        return list(self._quarantine.reasons.values())

    def training(self, start: int) -> Generator[Batch, None, None]:
        """Yield this worker's share of the batches from image ``start`` on, endlessly.

        Its share of a batch is every world_size-th image, starting at its rank; if the batch size
        is not a multiple of world_size, the first ranks get one more. Corrupt samples are replaced;
        see sample_loader.py. Close the iterator to stop its threads.

        Raises DataError if a sample cannot be read, or if too many are corrupt.
        """
        reader = WindowReader()
        requests = self._order.requests(reader, "order", start)
        if "unpaired" in self._job.model.takes:
            inputs = self._order.requests(reader, "strangers", start)
            requests = (
                request._replace(unpaired_input=(other.window, other.within))
                for request, other in zip(requests, inputs, strict=True)
            )
        return self._batches(self._train, reader, requests, augmented=True)

    def validation(self) -> Iterator[Batch]:
        """Yield this worker's share of the validation set in its order, without augmentation.

        Rank r of W gets the samples from r N / W to (r + 1) N / W: shares may differ by one image
        or be empty.
        """
        if self._validation is None:
            return iter(())
        total, world_size = self.num_validation, self._world_size
        share = range(self._rank * total // world_size, (self._rank + 1) * total // world_size)
        reader, packed = WindowReader(), self._validation
        window_size = samples_in(self._job.data.read_size, packed)
        requests = _iter_in_set_order(reader, packed, share, window_size)
        return self._batches(TrainingSet((packed,), (1,)), reader, requests, augmented=False)

    def examples(self, count: int) -> Batch:
        """Return images spread evenly over the validation set, or the training set without one.

        They are not augmented and the same on every rank; fewer than ``count`` in a smaller set.
        """
        source = self._train
        if self._validation is not None:
            source = TrainingSet((self._validation,), (1,))
        step = max(1, source.num_samples // count)
        positions = range(0, source.num_samples, step)[:count]
        samples = []
        for packed, number in map(source.locate, positions):
            (sample,) = read_samples(packed, *packed.locate(numpy.asarray([number])))
            samples.append((packed, sample))
        return self._batcher.batch(samples, list(positions))

    def _open(self, uri: str) -> ShardSet:
        """Open the set at ``uri`` with the job's retries and cache."""
        data = self._job.data

        def open_retrying(uri: str) -> Storage:
            storage = RetryingStorage(open_storage(uri), data.retry_timeout_s, self._counters)
            self._storages.append(storage)
            return storage

        packed = open_set(uri, open_retrying)
        if data.cache is None:
            return packed
        entries = {s.name: CacheEntry(s.sha256, s.num_bytes) for s in packed.index.shards}
        folder, limit = Path(data.cache.folder), data.cache.limit
        cached = CachedStorage(packed.storage, folder, limit, entries, self._counters)
        return replace(packed, storage=cached)

    def _batches(
        self,
        source: TrainingSet,
        reader: WindowReader,
        requests: Iterator[SampleRequest],
        *,
        augmented: bool,
    ) -> Generator[Batch, None, None]:
        batches = self._batcher.batches(source, requests, augmented=augmented)
        try:
            for batch in batches:  # noqa: UP028 - `yield from` would close the batches first
                yield batch
        finally:
            if augmented:  # so that the end of the training does not wait for retries
                for storage in self._storages:
                    storage.close()
            reader.close()
            batches.close()

    def _describe_wait(self) -> str:
        pending = list(filter(None, (storage.oldest_request() for storage in self._storages)))
        if not pending:
            return f"rank {self._rank} is decoding; nothing is being read"
        return f"rank {self._rank} waits for {' and '.join(pending)}"


def _iter_in_set_order(
    reader: WindowReader, packed: ShardSet, positions: range, window_size: int
) -> Iterator[SampleRequest]:
    """Yield the samples at these positions in the set, in windows of ``window_size``."""
    for first in range(positions.start, positions.stop, window_size):
        numbers = range(first, min(first + window_size, positions.stop))
        window = Window(0, 0, first, *packed.locate(numpy.asarray(numbers)))
        pending = reader.start(packed, window, range(len(numbers)))
        for within, number in enumerate(numbers):
            yield SampleRequest(pending, within, number)
