"""Windows are read with few large requests, within the memory of the job."""

import json
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.loading import batcher, window_reader
from orchestrator.data.loading.stream import ShardStream
from orchestrator.storage.local import FolderStorage
from support.sample_sets import (
    NUM_SINGLE,
    CountingStorage,
    by_position,
    first_batches,
    images,
    job_of,
    set_of,
)


def test_an_epoch_takes_one_or_two_requests_per_window(
    root: str, counted: type[CountingStorage]
) -> None:
    packed = set_of(root)
    mean = packed.num_bytes // NUM_SINGLE
    job = job_of(root, read_size=10 * mean, prefetch_memory=60 * mean)
    first_batches(job, 0, 1, NUM_SINGLE // 8)
    windows = 4 * (100 // 10 + 1)
    # A window across two shards takes two, and some of the next epoch are read ahead.
    assert NUM_SINGLE // 10 <= len(counted.ranges) <= windows + len(packed.shard_sizes) + 12
    assert max(length for _, _, length in counted.ranges) > 8 * packed.num_bytes // NUM_SINGLE


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_worker_reads_only_its_own_samples(
    root: str, counted: type[CountingStorage], world_size: int
) -> None:
    """Also when it starts in the middle of an epoch."""
    start = 200
    for rank in range(world_size):
        counted.ranges.clear()
        batches = ShardStream(
            job_of(root, prefetch_memory="40KiB", read_size="8KiB"), rank, world_size
        )
        taken = batches.training(start)
        list(islice(taken, 20))
        taken.close()
        num_bytes = sum(length for _, _, length in counted.ranges)
        mean = set_of(root).num_bytes / NUM_SINGLE
        wanted = 20 * 8 / world_size
        ahead = 4 * batcher.PREFETCHED_BATCHES * 8 / world_size + 4 * 10
        assert num_bytes <= (wanted + ahead) * mean


def test_the_first_batch_needs_few_bytes(root: str, counted: type[CountingStorage]) -> None:
    packed = set_of(root)
    job = job_of(root, shuffle_streams=96, read_size=packed.num_bytes // 96)
    batches = ShardStream(job, 0, 1).training(0)
    next(batches)
    read = sum(length for _, _, length in counted.ranges)
    batches.close()
    assert read < packed.num_bytes / 4


@pytest.mark.parametrize(
    ("shuffle_streams", "read_size", "expected"),
    [(96, 1 << 30, 3), (96, 10_000, 24), (96, 4_000, 96), (5, 1 << 30, 5), (8, 100_000, 4)],
)
def test_a_small_set_has_fewer_streams_so_that_each_has_a_window(
    root: str, shuffle_streams: int, read_size: int, expected: int
) -> None:
    packed = set_of(root)
    assert 400_000 < packed.num_bytes < 500_000
    job = job_of(
        root,
        shuffle_streams=shuffle_streams,
        read_size=read_size,
        prefetch_memory=1 << 40,
    )
    (order,) = ShardStream(job, 0, 1)._order.sample_orders("order")
    assert order.num_streams == expected


def test_memory_is_reused_only_when_no_batch_refers_to_it(root: str) -> None:
    taken = ShardStream(job_of(root), 0, 1).training(0)
    held = [next(taken) for _ in range(12)]
    wanted = [batch.images.clone() for batch in held]
    parts = [batch.split(3)[1] for batch in held]
    addresses = {batch.images.data_ptr() for batch in held}
    assert len(addresses) == 12
    for _ in range(30):
        next(taken)
    assert all(torch.equal(b.images, w) for b, w in zip(held, wanted, strict=True))
    del held
    for _ in range(30):
        next(taken)
    for part, want in zip(parts, wanted, strict=True):
        assert torch.equal(part.images, want[3:6]), "a part of a batch keeps its memory"
    del parts
    later = {next(taken).images.data_ptr() for _ in range(100)}
    taken.close()
    assert len(later) <= 8, "the memory of a few batches is reused"


def test_reading_ahead_is_bounded_by_prefetch_memory(
    root: str, counted: type[CountingStorage]
) -> None:
    packed = set_of(root)
    mean = packed.num_bytes // NUM_SINGLE
    windows = 4 * 5 * mean
    job = job_of(root, shuffle_streams=4, read_size=5 * mean, prefetch_memory=4 * windows // 3 + 1)
    batches = ShardStream(job, 0, 1).training(0)
    held: list[int] = []
    for taken in range(1, 60):
        next(batches)
        held.append(sum(length for _, _, length in counted.ranges) - 8 * taken * mean)
    batches.close()
    decoded = (1 + batcher.PREFETCHED_BATCHES) * 8 * mean
    assert max(held) <= job.data.prefetch_memory + decoded + 2 * 5 * mean


def test_distant_samples_are_not_read_in_one_request(
    root: str, counted: type[CountingStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = open_set(f"{root}/train", lambda uri: counted(Path(uri)))
    shards, indices = numpy.array([0, 1, 0, 0]), numpy.array([20, 3, 1, 0])
    for gap, requests in ((1 << 20, 2), (0, 3)):
        counted.ranges.clear()
        monkeypatch.setattr(window_reader, "MAX_GAP_BYTES", gap)
        found = window_reader.read_samples(packed, shards, indices)
        assert len(counted.ranges) == requests
        for shard, index, encoded in zip(shards, indices, found, strict=True):
            members = packed.split_members(encoded.data, "here")
            assert members["image"] == packed.read(int(shard), int(index))["image"]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_workers_that_do_not_divide_the_streams_get_the_same_samples(
    root: str, world_size: int
) -> None:
    alone = by_position(first_batches(job_of(root, shuffle_streams=1), 0, 1, 60))
    together = by_position(
        [
            batch
            for rank in range(world_size)
            for batch in first_batches(job_of(root, shuffle_streams=1), rank, world_size, 60)
        ]
    )
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[n][0], together[n][0]) for n in alone)


def test_an_epoch_has_every_sample_once_for_any_read_size(root: str) -> None:
    wanted = sorted(images(n).numpy().tobytes() for n in range(NUM_SINGLE))
    for window in ("1KiB", "20KiB", "4MiB"):
        batches = first_batches(
            job_of(root, shuffle_streams=7, read_size=window), 0, 1, NUM_SINGLE // 8
        )
        found = sorted(image.numpy().tobytes() for b in batches for image in b.images)
        assert found == wanted


def test_the_index_is_small_and_tables_are_read_on_demand(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than 16 bytes per sample, with the index entry of a shard of 64 MiB."""
    packed = set_of(root)
    tables = sum(p.stat().st_size for p in Path(root, "train").glob("*.idx"))
    assert tables == 8 * NUM_SINGLE
    entry = len(json.dumps(packed.index.shards[0].model_dump(by_alias=True)))
    assert 8 + entry / 1000 < 16
    keys: list[str] = []
    get = FolderStorage.get

    def record(self: FolderStorage, key: str) -> bytes:
        keys.append(key)
        return get(self, key)

    monkeypatch.setattr(FolderStorage, "get", record)
    opened = open_set(f"{root}/train")
    assert keys == ["index.json"]
    opened.read(2, 0)
    opened.read(2, 1)
    assert keys == ["index.json", "000002.tar.idx"]
