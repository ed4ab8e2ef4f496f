"""Samples to batches: decoded in threads some batches ahead, each into its place."""

import itertools
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading.sample_loader import SampleLoader, DecodedSample
from orchestrator.data.loading.transforms import write_floats
from orchestrator.data.loading.window_reader import EncodedSample, PendingWindow
from orchestrator.models.base import Batch
from orchestrator.models.parts.text import caption_bytes

BATCHES_AHEAD = 3
"""Batches that are decoded while one is trained on; each costs its floats."""
MOST_SAMPLES_AHEAD = 1 << 14
"""Samples for which reading goes ahead of decoding at most, however small they are."""
LARGEST_TASK = 32
"""Samples that a thread decodes in one go: enough that handing them over costs nothing."""
SMALL_SAMPLE = 8192
"""Values of a sample that one thread decodes faster than several, which wait for the GIL in turn:
19,000 samples/s of 28 px grey with one, 11,600 with two."""
ALIGNMENT = 64
STALL_S = 30
"""After this long without a batch it is told what is being waited for, and again each time."""

Floats = NDArray[numpy.float32]

logger = logging.getLogger(__name__)


class SampleRequest(NamedTuple):
    """One sample to load from a window that is open."""

    opened: PendingWindow
    within: int
    """Number of the sample in its window."""
    position: int
    """Its number in the global order; in a validation set, its index."""
    stranger: tuple[PendingWindow, int] | None = None
    """Where the input image is that does not belong to the sample, for unpaired sets."""


class Batcher:
    """Makes a worker's batches out of samples."""

    def __init__(self, job: Job, loader: SampleLoader, share: int, *, pin_memory: bool) -> None:
        """Make batches of ``share`` samples, the last one of a finite set perhaps smaller."""
        self._job, self._loader, self._share = job, loader, share
        self._buffers = _Buffers(pin_memory=pin_memory)
        self._lock = threading.Lock()
        self.read_wait_s = 0.0
        """Seconds that decoding threads have waited for bytes."""

    def batches(
        self,
        packed: ShardSet,
        wanted: Iterator[SampleRequest],
        *,
        augmented: bool,
        waiting_for: Callable[[], str],
    ) -> Generator[Batch, None, None]:
        """Batches of the samples in order. Closing the iterator, or its end, stops its threads.

        Reading goes ahead of decoding by up to a quarter of data.prefetch_memory. It starts with
        what the first batch needs and doubles from batch to batch.

        Args:
            waiting_for: asked for words when a batch takes long.
        """
        threads = self._threads(packed)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        walked: deque[SampleRequest] = deque()
        making: deque[PendingBatch] = deque()
        depth, most = self._share, self._most_ahead(packed)
        try:
            while True:
                walked.extend(itertools.islice(wanted, max(0, depth - len(walked))))
                while walked and len(making) < BATCHES_AHEAD:
                    portion = [walked.popleft() for _ in range(min(self._share, len(walked)))]
                    size = min(LARGEST_TASK, -(-len(portion) // threads))
                    making.append(self._started(pool, packed, portion, size, augmented))
                    walked.extend(itertools.islice(wanted, len(portion)))
                if not making:
                    return
                yield _patiently(making.popleft(), waiting_for)
                depth = min(2 * depth, most)
        finally:
            pool.shutdown(cancel_futures=True)

    def batch(self, packed: ShardSet, samples: list[EncodedSample], positions: list[int]) -> Batch:
        """The batch of ``samples``, not augmented, made in this thread."""
        making = PendingBatch(self._job, packed, positions, self._buffers)
        for number, encoded in enumerate(samples):
            making.put(number, self._loader.load(packed, encoded, None))
        return making.batch()

    def _started(
        self,
        pool: Executor,
        packed: ShardSet,
        portion: list[SampleRequest],
        size: int,
        augmented: bool,
    ) -> "PendingBatch":
        """Start loading a batch, ``size`` samples in one go."""
        positions = [wanted.position for wanted in portion]
        making = PendingBatch(self._job, packed, positions, self._buffers)
        for first in range(0, len(portion), size):
            part = portion[first : first + size]
            making.tasks.append(pool.submit(self._load, packed, part, making, first, augmented))
        return making

    def _load(
        self,
        packed: ShardSet,
        part: list[SampleRequest],
        making: "PendingBatch",
        first: int,
        augmented: bool,
    ) -> None:
        """Load samples into the batch from its number ``first`` on; runs in a decoding thread."""
        given = "a" if self._job.data.direction == "AtoB" else "b"
        for number, (opened, within, position, stranger) in enumerate(part, start=first):
            key = position if augmented else None
            sample = self._loader.load(packed, self._encoded(opened, within), key)
            if stranger is not None:
                other = self._encoded(*stranger)
                images = self._loader.load(packed, other, key, draw="stranger").images
                sample.images[given] = images[given]
            making.put(number, sample)

    def _encoded(self, opened: PendingWindow, within: int) -> EncodedSample:
        if opened.done:
            return opened.encoded(within)
        start = time.perf_counter()
        encoded = opened.encoded(within)
        with self._lock:
            self.read_wait_s += time.perf_counter() - start
        return encoded

    def _threads(self, packed: ShardSet) -> int:
        values = packed.image_size**2 * packed.channels * len(packed.fields)
        return 1 if values <= SMALL_SAMPLE else self._job.data.threads

    def _most_ahead(self, packed: ShardSet) -> int:
        """Samples for which reading goes ahead of decoding at most.

        No more than an eighth of the set: of a small one, all would be held twice.
        """
        mean_bytes = max(1, packed.num_bytes // packed.num_samples)
        fit = self._job.data.prefetch_memory // 4 // mean_bytes
        return max(self._share, min(fit, MOST_SAMPLES_AHEAD, packed.num_samples // 8))


class _Buffers:
    """Memory for batches, used again once no tensor is on it any more.

    Fresh pages cost a fifth of what decoding costs, and freed ones leave holes in the heap.
    """

    MOST = 2 * (BATCHES_AHEAD + 2)

    def __init__(self, *, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._arrays: list[Floats] = []

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised float32 tensor that nobody else uses; one thread calls it."""
        if self._pin_memory:  # torch keeps pinned memory by itself
            return torch.empty(shape, pin_memory=True)
        for array in self._arrays:
            # A tensor holds the array that it is on; else there are the list, this name, the call.
            if array.shape == shape and sys.getrefcount(array) == 3:
                return torch.from_numpy(array)
        array = _aligned(shape)
        self._arrays = [*self._arrays[-self.MOST + 1 :], array]
        return torch.from_numpy(array)


def _aligned(shape: tuple[int, ...]) -> Floats:
    """Uninitialised memory that starts on a cache line, as torch's does.

    On other addresses oneDNN and MKL add in another order, and a resumed training is not exact.
    """
    count = math.prod(shape)
    raw = numpy.empty(count + ALIGNMENT // 4, numpy.float32)
    first = -raw.ctypes.data % ALIGNMENT // 4
    return raw[first : first + count].reshape(shape)


class PendingBatch:
    """A batch in the making: decoding threads fill it in place."""

    def __init__(self, job: Job, packed: ShardSet, positions: list[int], buffers: _Buffers) -> None:
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
        """Fill in the batch's sample ``number``."""
        for name, array in self._arrays.items():
            write_floats(sample.images[name], array[number])
        self._labels[number], self._captions[number] = sample.label, sample.caption

    def batch(self) -> Batch:
        """The finished batch."""
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


def _patiently(making: PendingBatch, waiting_for: Callable[[], str]) -> Batch:
    """The batch when it is finished; tells what is waited for when that takes long."""
    waited_s = 0.0
    for task in making.tasks:
        while not wait([task], timeout=STALL_S).done:
            waited_s += STALL_S
            logger.warning("no batch for %.0f s: %s", waited_s, waiting_for())
        task.result()
    return making.batch()
