"""Measure reading: the order of samples, the index, and the requests of a worker.

The sets have their real size but no images: index and sample tables are real, and a storage
returns zeros for the shards. The requests that the reader makes are counted.
"""

import threading
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy

from benchmarks.scale.timing import cpu_s
from orchestrator.config.data_section import DataSection
from orchestrator.config.job import Job, TrainSection
from orchestrator.data.format import sample_table
from orchestrator.data.format.index_entries import Shard
from orchestrator.data.format.shard_index import INDEX, Index, canonical_json, open_set
from orchestrator.data.format.writer import SHARD_BYTES
from orchestrator.data.loading.sampler import NUM_STREAMS, SampleOrder
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.training_order import TrainingOrder
from orchestrator.data.loading.training_set import TrainingSet
from orchestrator.data.loading.window_reader import WindowReader, read_samples
from orchestrator.models.base import ModelConfig
from orchestrator.storage.base import NotFound, Storage, WrappedStorage
from orchestrator.storage.open import open_storage

SIDE = 256
SAMPLE_BYTES = 37 * 512
"""A 256 px photograph as JPEG with quality 90 and its tar header, as in benchmarks.stream."""
SHARD_SAMPLES = (SHARD_BYTES - 1024) // SAMPLE_BYTES
WINDOW_SAMPLES = (4 << 20) // SAMPLE_BYTES
WORKERS = (8, 256, 4096)
SET_SAMPLES = {8: 200_000, 256: 1_000_000, 4096: 4_000_000}
"""Size of the sets by number of workers: at least one window per shuffle stream."""

UNEVEN_SHARE = 16
"""Images per worker in the batch that cannot be split evenly."""


def num_streams_for(workers: int) -> int:
    """Return the default number of shuffle streams if it suits, else one per worker."""
    return NUM_STREAMS if NUM_STREAMS % workers == 0 else workers


class CountingStorage(WrappedStorage):
    """Counts the requests and bytes read from another storage."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.requests = self.tables = self.bytes_read = 0

    def get(self, key: str) -> bytes:
        return self._count(super().get(key), table=key.endswith(sample_table.SUFFIX))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._count(super().get_range(key, start, length))

    def list(self, prefix: str = "") -> list[str]:
        self._count(b"")
        return super().list(prefix)

    def size(self, key: str) -> int:
        self._count(b"")
        return super().size(key)

    def _count(self, data: bytes, table: bool = False) -> bytes:
        with self._lock:
            self.requests, self.tables = self.requests + 1, self.tables + table
            self.bytes_read += len(data)
        return data


class SyntheticStorage(WrappedStorage):
    """Storage of a synthetic set: sample tables, and zeros for the images."""

    def __init__(self, inner: Storage, tables: dict[str, bytes]) -> None:
        super().__init__(inner)
        self._tables = tables

    def get(self, key: str) -> bytes:
        if key not in self._tables:
            raise NotFound(key)
        return self._tables[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(length)


@dataclass(frozen=True)
class SyntheticSet:
    """A set with only its index in a folder."""

    folder: Path
    tables: dict[str, bytes]

    @property
    def storage(self) -> Storage:
        """The storage that serves the whole set."""
        return SyntheticStorage(open_storage(str(self.folder)), self.tables)


def make_set(folder: Path, num_samples: int, sample_bytes: int = SAMPLE_BYTES) -> SyntheticSet:
    """Make a set of ``num_samples`` equal samples in shards of 64 MiB."""
    each = (SHARD_BYTES - 1024) // sample_bytes
    sizes = [each] * (num_samples // each) + ([num_samples % each] if num_samples % each else [])
    tables = {
        size: sample_table.encode(range(0, (size + 1) * sample_bytes, sample_bytes), [0] * size)
        for size in set(sizes)
    }
    shards = [
        Shard(
            name=f"{number:06d}.tar",
            bytes=size * sample_bytes + 1024,
            sha256=f"{number:064x}",
            samples=size,
            table_crc32=zlib.crc32(tables[size]),
        )
        for number, size in enumerate(sizes)
    ]
    index = Index(
        fields={"image": "image.jpg"},
        image_size=SIDE,
        channels=3,
        num_samples=num_samples,
        shards=tuple(shards),
    ).with_digest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_bytes(canonical_json(index.model_dump(by_alias=True)))
    return SyntheticSet(folder, {s.table: tables[s.num_samples] for s in shards})


def make_job(uri: str, batch_size: int, num_streams: int, image_size: int = SIDE) -> Job:
    """Make a job that reads the set at ``uri``."""
    model = ModelConfig.model_validate({"name": "autoencoder", "image_size": image_size})
    if model.channels != 3:
        model = model.model_copy(update={"channels": 3})
    return Job(
        name="scale",
        model=model,
        data=DataSection(train=uri, shuffle_streams=num_streams),
        train=TrainSection(epochs=1, batch_size=batch_size),
    )


@dataclass(frozen=True)
class Reads:
    """Reads of one worker for its samples of an epoch."""

    samples: int
    requests: int
    tables: int
    """Requests for sample tables, one per shard that the worker reads from."""
    bytes_read: int

    @property
    def windows_per_sample(self) -> float:
        """Requests for images per image used."""
        return (self.requests - self.tables) / self.samples


def count_reads(job: Job, storage: Storage, rank: int, workers: int) -> Reads:
    """Count the reads of worker ``rank`` in the first epoch, read as in training.

    Args:
        storage: holds the set of ``job``.
    """
    stream = ShardStream(job, rank, workers)
    counting = CountingStorage(storage)
    packed = replace(stream._train.sets[0], storage=counting)
    reader, order = WindowReader(), TrainingOrder(job, TrainingSet((packed,), (1,)), rank, workers)
    samples = stream.num_samples // workers
    requests = islice(order.requests(reader, "order", 0), samples)
    used = sum(len(one.window.sample(one.within).data) > 0 for one in requests)
    reader.close()
    return Reads(used, counting.requests, counting.tables, counting.bytes_read)


def measure_requests(folder: Path) -> dict[str, float]:
    """Count requests per image with 96 shuffle streams and with at least one per worker."""
    found: dict[str, float] = {}
    for workers in WORKERS:
        made = make_set(folder / str(workers), SET_SAMPLES[workers])
        for name, num_streams in (("default", NUM_STREAMS), ("own", num_streams_for(workers))):
            job = make_job(str(made.folder), workers, num_streams)
            reads = _total(
                count_reads(job, made.storage, rank, workers) for rank in (0, workers // 3)
            )
            found[f"gets_per_image_{name}_{workers}"] = reads.windows_per_sample
            found[f"bytes_per_image_{name}_{workers}"] = reads.bytes_read / reads.samples
    # An elastic job has lost one of 256 workers, and 255 does not divide the batch.
    job = make_job(str(folder / "256"), 256 * UNEVEN_SHARE, 256)
    made = make_set(folder / "256", SET_SAMPLES[256])
    reads = count_reads(job, made.storage, 7, 255)
    found["gets_per_image_uneven_255"] = reads.windows_per_sample
    found["bytes_per_image_uneven_255"] = reads.bytes_read / reads.samples
    return found


def _total(reads: Iterable[Reads]) -> Reads:
    columns = zip(*((r.samples, r.requests, r.tables, r.bytes_read) for r in reads), strict=True)
    return Reads(*(sum(column) for column in columns))


def measure_order(folder: Path) -> dict[str, float]:
    """Measure the order of 100 million samples with at least one shuffle stream per worker."""
    del folder
    sizes = numpy.full(100_000_000 // SHARD_SAMPLES, SHARD_SAMPLES)
    found: dict[str, float] = {"order_shards": len(sizes)}
    for workers in WORKERS:
        num_streams = num_streams_for(workers)
        tracemalloc.start()
        order = SampleOrder(sizes, seed=1, num_streams=num_streams, window_size=WINDOW_SAMPLES)
        order.locate(0)
        found[f"order_bytes_{workers}"] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        middle = order.num_samples // 2 // num_streams * num_streams
        places, epochs = count(middle), count(2)
        window_s = cpu_s(partial(_windows, order, places)) / 90
        found[f"order_window_us_{workers}"] = 1e6 * window_s
        epoch_s = cpu_s(partial(_new_epoch, order, epochs))
        found[f"order_epoch_ms_{workers}"] = 1e3 * epoch_s
    return found


def _windows(order: SampleOrder, places: Iterator[int]) -> None:
    for n in islice(places, 90):
        order.window_at(n)


def _new_epoch(order: SampleOrder, epochs: Iterator[int]) -> None:
    order.locate(next(epochs) * order.num_samples + 5)


def measure_index(folder: Path) -> dict[str, float]:
    """Measure the index of large sets: its size, and the cost of reading it."""
    found: dict[str, float] = {}
    for power in (6, 7, 8):
        made = make_set(folder / f"1e{power}", 10**power)
        found[f"index_bytes_1e{power}"] = (made.folder / INDEX).stat().st_size
        found[f"index_load_ms_1e{power}"] = 1e3 * cpu_s(partial(open_set, str(made.folder)), 3)
        tracemalloc.start()
        packed = open_set(str(made.folder))
        found[f"index_memory_bytes_1e{power}"] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del packed
    found["table_bytes_per_image"] = sample_table.ENTRY_BYTES
    return found


def measure_start(folder: Path) -> dict[str, float]:
    """Count the requests of a worker before its first batch: index, examples, checkpoint."""
    from benchmarks.scale.saving import save_one
    from orchestrator.training.trainer import NUM_EXAMPLES

    made = make_set(folder / "start", 1_000_000)
    counting = CountingStorage(made.storage)
    packed = open_set(str(made.folder), lambda uri: CountingStorage(open_storage(uri)))
    packed = replace(packed, storage=counting)
    spread = range(0, packed.num_samples, packed.num_samples // NUM_EXAMPLES)[:NUM_EXAMPLES]
    shards = numpy.asarray(spread) // SHARD_SAMPLES
    read_samples(packed, shards, numpy.asarray(spread) % SHARD_SAMPLES)
    restore = CountingStorage(open_storage(str(folder / "runs")))
    checkpoints = save_one(restore, 1 << 20)
    restore.requests = 0
    assert checkpoints.latest() is not None
    return {
        "start_requests_data": 1 + counting.requests,  # 1 for the index
        "start_requests_restore": 1 + restore.requests,  # 1 for run.json
    }
