"""Corrupt samples, missing shards, stalls and the cache of a stream."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading import batcher
from orchestrator.data.loading.sampler import SampleLocation, SampleOrder
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import DataError
from support.sample_sets import (
    CountingStorage,
    Images,
    by_position,
    first_batches,
    images,
    job_of,
    set_of,
)
from support.waiting import wait_until


def number_of(packed: ShardSet, location: SampleLocation) -> int:
    return sum(packed.shard_sizes[: location.shard]) + location.index


def corrupt(folder: Path, packed: ShardSet, location: SampleLocation) -> None:
    """Flip a bit in the middle of a sample."""
    path = folder / packed.index.shards[location.shard].name
    data = bytearray(path.read_bytes())
    data[int(packed.table(location.shard).starts[location.index]) + 700] ^= 4
    path.write_bytes(data)


@pytest.fixture
def copied(root: str, tmp_path: Path) -> Path:
    """A copy of the set that may be changed."""
    (tmp_path / "train").mkdir()
    for path in Path(root, "train").iterdir():
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_corrupt_sample_is_reported_and_replaced_for_any_number_of_workers(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = set_of(str(copied))
    job = job_of(str(copied), max_corrupt_fraction=0.1)
    order = stream_order(job, packed)
    location = order.locate(30)
    corrupt(copied / "train", packed, location)
    neighbour = SampleLocation(
        location.shard, (location.index + 1) % packed.shard_sizes[location.shard]
    )
    shard = packed.index.shards[location.shard].name
    for world_size in (1, 2, 4):
        caplog.clear()
        seen: Images = {}
        for rank in range(world_size):
            worker = ShardStream(job, rank, world_size)
            taken = worker.training(0)
            seen |= by_position(list(islice(taken, 100)))
            taken.close()
            warnings = [r for r in caplog.records if "replaced by its neighbour" in r.message]
            caplog.clear()
            assert len(warnings) == worker.counts()["corrupt_samples"], "once in two epochs"
            if 30 % world_size == rank:
                (line,) = worker.corrupt_samples()
                assert f"{shard}, sample {location.index}: the bytes differ from those" in line
        for n, (image, _) in seen.items():
            found = order.locate(n)
            expected = number_of(packed, neighbour if found == location else found)
            assert torch.equal(image, images(expected))


def stream_order(job: Job, packed: ShardSet) -> SampleOrder:
    (order,) = ShardStream(job, 0, 1)._order.sample_orders("order")
    assert order.num_samples == packed.num_samples
    return order


def test_too_many_corrupt_samples_end_training_with_exit_code_4(copied: Path) -> None:
    packed = set_of(str(copied))
    job = job_of(str(copied), max_corrupt_fraction=0.01)
    order = stream_order(job, packed)
    for n in range(3, 200, 20):
        corrupt(copied / "train", packed, order.locate(n))
    taken = ShardStream(job, 0, 1).training(0)
    message = r"corrupt samples on this worker: 5, but data\.max_corrupt_fraction allows 4"
    with pytest.raises(DataError, match=message) as caught:
        list(islice(taken, 50))
    assert caught.value.exit_code == 4


def test_a_missing_shard_is_named_and_ends_training_at_once(copied: Path) -> None:
    shard = set_of(str(copied)).index.shards[3].name
    (copied / "train" / shard).unlink()
    taken = ShardStream(job_of(str(copied)), 0, 1).training(0)
    with pytest.raises(DataError, match=f"train/{shard} is missing, but the index lists it"):
        list(islice(taken, 50))
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "decode"))]


def test_a_stall_is_logged_with_the_rank_and_the_request(
    root: str,
    counted: type[CountingStorage],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(batcher, "STALL_WARNING_S", 0.5)
    worker = ShardStream(job_of(root), 1, 2)
    counted.gate.clear()
    taken = worker.training(0)
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(1) as pool:
        batch = pool.submit(next, taken)
        wait_until(lambda: "no batch for 1 s" in caplog.text, 15, "warnings")
        counted.gate.set()
        batch.result()
    taken.close()
    warnings = [record.message for record in caplog.records if "no batch for" in record.message]
    assert len(warnings) >= 2
    assert "rank 1 waits for" in warnings[0]
    assert "/train/0000" in warnings[0]
    assert "bytes" in warnings[0]


def test_the_second_epoch_is_read_from_the_cache_that_ranks_share(
    root: str, counted: type[CountingStorage], tmp_path: Path
) -> None:
    cache = {"folder": str(tmp_path / "cache"), "limit": "1GiB"}
    job = job_of(root, cache=cache)
    plain = by_position(first_batches(job_of(root), 0, 1, 110))
    counted.ranges.clear()
    worker = ShardStream(job, 0, 1)
    taken = worker.training(0)
    cached = by_position(list(islice(taken, 110)))
    taken.close()
    assert all(torch.equal(cached[n][0], plain[n][0]) for n in plain)
    packed = set_of(root)
    # Threads that miss the same block at once may both read it.
    assert sum(length for _, _, length in counted.ranges) < 1.5 * packed.num_bytes
    assert worker.counts()["cache_hits"] > 0
    counted.ranges.clear()
    first_batches(job, 1, 2, 50)
    assert counted.ranges == []


def test_a_corrupt_block_of_the_cache_is_read_again(root: str, tmp_path: Path) -> None:
    job = job_of(root, cache={"folder": str(tmp_path), "limit": "1GiB"})
    one = by_position(first_batches(job, 0, 1, 50))
    blocks = list(tmp_path.rglob("*.block"))
    assert blocks
    for path in blocks:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    worker = ShardStream(job, 0, 1)
    taken = worker.training(0)
    two = by_position(list(islice(taken, 50)))
    taken.close()
    assert all(torch.equal(one[n][0], two[n][0]) for n in one)
    assert worker.corrupt_samples() == []
