"""Build batches from samples that are decoded in threads, some batches ahead."""

import itertools
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import DecodedSample, ShardSet
from orchestrator.data.loading.sample_loader import SampleLoader
from orchestrator.data.loading.training_set import TrainingSet
from orchestrator.data.loading.transforms import write_floats
from orchestrator.data.loading.window_reader import EncodedSample, PendingWindow
from orchestrator.models.base import Batch
from orchestrator.models.parts.text import caption_bytes

PREFETCHED_BATCHES = 3
"""Batches decoded while one is trained on; each takes the memory of its floats."""
MAX_SAMPLES_AHEAD = 1 << 14
"""Most samples that reading is ahead of decoding, however small they are."""
MAX_TASK_SAMPLES = 32
"""Samples decoded per task of a thread: enough to make the overhead of a task negligible."""
SINGLE_THREAD_VALUES = 8192
"""Samples of up to this many values are decoded faster by one thread than by several, which wait
for the GIL in turn: 19,000 samples/s of 28 px grey with one thread, 11,600 with two."""
ALIGNMENT_BYTES = 64
STALL_WARNING_S = 30
"""Interval of the warnings while there is no batch."""

Floats = NDArray[numpy.float32]

logger = logging.getLogger(__name__)


class SampleRequest(NamedTuple):
    """One sample to load from a window that is being read."""

    window: PendingWindow
    within: int
    """Number of the sample in the window."""
    position: int
    """Position in the global order; in a validation set, the index of the sample."""
    unpaired_input: tuple[PendingWindow, int] | None = None
    """For unpaired sets, the window and number of the sample whose input image is used."""


class Batcher:
    """Builds the batches of one worker."""

    def __init__(
        self,
        job: Job,
        loader: SampleLoader,
        share: int,
        describe_wait: Callable[[], str],
        *,
        pin_memory: bool,
    ) -> None:
        """Build batches of ``share`` samples; the last one of a finite set may be smaller.

        ``describe_wait`` returns what a late batch waits for, for the log.
        """
        self._job, self._loader, self._share = job, loader, share
        self._describe_wait = describe_wait
        self._buffers = _BufferPool(pin_memory=pin_memory)
        self._lock = threading.Lock()
        self.read_wait_s = 0.0
        """Total time that decoding threads have waited for bytes."""

    def batches(
        self, source: TrainingSet, requests: Iterator[SampleRequest], *, augmented: bool
    ) -> Generator[Batch, None, None]:
        """Yield batches of the samples in order. Its end, or closing it, stops the threads.

        Reading is ahead of decoding by up to a quarter of data.prefetch_memory: by what the first
        batch needs at first, doubling with each batch.
        """
        packed = source.sets[0]  # the others are alike
        num_values = packed.image_size**2 * packed.channels * len(packed.fields)
        num_threads = 1 if num_values <= SINGLE_THREAD_VALUES else self._job.data.threads
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        reading: deque[SampleRequest] = deque()
        decoding: deque[PendingBatch] = deque()
        num_ahead, max_ahead = self._share, self._max_samples_ahead(source)
        try:
            while True:
                reading.extend(itertools.islice(requests, max(0, num_ahead - len(reading))))
                while reading and len(decoding) < PREFETCHED_BATCHES:
                    share = [reading.popleft() for _ in range(min(self._share, len(reading)))]
                    task_size = min(MAX_TASK_SAMPLES, -(-len(share) // num_threads))
                    positions = [request.position for request in share]
                    pending = PendingBatch(self._job, packed, positions, self._buffers)
                    for first in range(0, len(share), task_size):
                        part = share[first : first + task_size]
                        task = pool.submit(self._load, part, pending, first, augmented)
                        pending.tasks.append(task)
                    decoding.append(pending)
                    reading.extend(itertools.islice(requests, len(share)))
                if not decoding:
                    return
                yield self._wait_for(decoding.popleft())
                num_ahead = min(2 * num_ahead, max_ahead)
        finally:
            pool.shutdown(cancel_futures=True)

    def batch(self, samples: list[tuple[ShardSet, EncodedSample]], positions: list[int]) -> Batch:
        """Build one batch of ``samples`` in this thread, without augmentation."""
        pending = PendingBatch(self._job, samples[0][0], positions, self._buffers)
        for number, (packed, encoded) in enumerate(samples):
            pending.put(number, self._loader.load(packed, encoded, None))
        return pending.batch()

    def _load(
        self,
        part: list[SampleRequest],
        pending: "PendingBatch",
        first: int,
        augmented: bool,
    ) -> None:
        """Load samples into the batch, starting at its sample ``first``, in a decoding thread."""
        input_field = "a" if self._job.data.direction == "AtoB" else "b"
        for number, (window, within, position, unpaired_input) in enumerate(part, start=first):
            key = position if augmented else None
            encoded = self._wait_to_read(window, within)
            sample = self._loader.load(window.packed, encoded, key)
            if unpaired_input is not None:
                other = self._wait_to_read(*unpaired_input)
                images = self._loader.load(window.packed, other, key, seed_key="stranger").images
                sample.images[input_field] = images[input_field]
            pending.put(number, sample)

    def _wait_to_read(self, window: PendingWindow, within: int) -> EncodedSample:
        if window.is_read:
            return window.sample(within)
        start = time.perf_counter()
        encoded = window.sample(within)
        with self._lock:
            self.read_wait_s += time.perf_counter() - start
        return encoded

    def _wait_for(self, pending: "PendingBatch") -> Batch:
        """Return the batch when it is complete; log what it waits for if that takes long."""
        waited_s = 0.0
        for task in pending.tasks:
            while not wait([task], timeout=STALL_WARNING_S).done:
                waited_s += STALL_WARNING_S
                logger.warning("no batch for %.0f s: %s", waited_s, self._describe_wait())
            task.result()
        return pending.batch()

    def _max_samples_ahead(self, source: TrainingSet) -> int:
        """Return the most samples that reading is ahead of decoding.

        At most an eighth of all sets: a small one would be held in memory twice.
        """
        num_fitting = self._job.data.prefetch_memory // 4 // source.mean_sample_bytes
        return max(self._share, min(num_fitting, MAX_SAMPLES_AHEAD, source.num_samples // 8))


class _BufferPool:
    """Memory for batches, reused when no tensor refers to it any more.

    New pages cost a fifth of the time of decoding, and freed ones fragment the heap.
    """

    MAX_BUFFERS = 2 * (PREFETCHED_BATCHES + 2)

    def __init__(self, *, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._arrays: list[Floats] = []

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialized float32 tensor. Not thread-safe."""
        if self._pin_memory:  # torch reuses pinned memory itself
            return torch.empty(shape, pin_memory=True)
        for array in self._arrays:
            # A tensor refers to its array; other references: the list, this name, the call.
            if array.shape == shape and sys.getrefcount(array) == 3:
                return torch.from_numpy(array)
        array = _aligned_empty(shape)
        self._arrays = [*self._arrays[-self.MAX_BUFFERS + 1 :], array]
        return torch.from_numpy(array)


def _aligned_empty(shape: tuple[int, ...]) -> Floats:
    """Return uninitialized memory that starts on a cache line, as torch's does.

    On other addresses oneDNN and MKL sum in another order, and resuming is not bit-exact.
    """
    count = math.prod(shape)
    raw = numpy.empty(count + ALIGNMENT_BYTES // 4, numpy.float32)
    first = -raw.ctypes.data % ALIGNMENT_BYTES // 4
    return raw[first : first + count].reshape(shape)


class PendingBatch:
    """A batch that decoding threads are filling in place."""

    def __init__(
        self, job: Job, packed: ShardSet, positions: list[int], buffers: _BufferPool
    ) -> None:
        self.tasks: list[Future[None]] = []
        self._positions, self._seed = positions, job.train.seed
        names = packed.fields
        if len(names) == 1:
            self._sides = {names[0]: "images"}
        else:
            given, target = ("a", "b") if job.data.direction == "AtoB" else ("b", "a")
            self._sides = {target: "images", given: "condition"}
        size = job.model.image_size
        shape = (len(positions), packed.channels, size, size)
        self._tensors = {side: buffers.tensor(shape) for side in self._sides.values()}
        self._arrays = {name: self._tensors[side].numpy() for name, side in self._sides.items()}
        self._labels: list[int | None] = [None] * len(positions)
        self._captions: list[str | None] = [None] * len(positions)

    def put(self, number: int, sample: DecodedSample) -> None:
        """Write the batch's sample ``number``."""
        for name, array in self._arrays.items():
            write_floats(sample.images[name], array[number])
        self._labels[number], self._captions[number] = sample.label, sample.caption

    def batch(self) -> Batch:
        """Return the complete batch."""
        labels = [label for label in self._labels if label is not None]
        captions = [caption_bytes(text) for text in self._captions if text is not None]
        return Batch(
            images=self._tensors["images"],
            positions=torch.tensor(self._positions, dtype=torch.int64),
            condition=self._tensors.get("condition"),
            labels=torch.tensor(labels, dtype=torch.int64) if labels else None,
            captions=torch.stack(captions) if captions else None,
            seed=self._seed,
        )
