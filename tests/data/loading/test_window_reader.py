"""How a worker reads: few large requests, little ahead, damage left out, faults told of."""

import json
import logging
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch
from test_stream import SIZE, by_position, first_batches, job_for, pixels, png, tensor

from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading import batcher as batches_module
from orchestrator.data.loading import stream, window_reader
from orchestrator.data.loading.sampler import SampleOrder, SampleLocation
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.transforms import to_float
from orchestrator.errors import DataError
from orchestrator.storage.local import FolderStorage

COUNT = 400


class CountingStorage(FolderStorage):
    """A folder that remembers which ranges of shards were read, and may hold them back."""

    ranges: list[tuple[str, int, int]]
    gate: threading.Event

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((key, start, length))
        self.gate.wait(20)
        return super().get_range(key, start, length)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[CountingStorage]]:
    """The storage that streams read through."""
    CountingStorage.ranges, CountingStorage.gate = [], threading.Event()
    CountingStorage.gate.set()
    monkeypatch.setattr(stream, "open_storage", lambda uri: CountingStorage(Path(uri)))
    yield CountingStorage
    CountingStorage.gate.set()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 single images in about 10 shards; sample n shows ``pixels(n)``."""
    folder = tmp_path_factory.mktemp("set")
    writer = ShardWriter(
        str(folder / "train"), ("image",), image_size=SIZE, channels=3, shard_bytes=40_000
    )
    for n in range(COUNT):
        writer.add(f"s{n}", {"image": png(pixels(n))})
    writer.finish()
    return str(folder)


def set_of(root: str) -> ShardSet:
    return open_set(f"{root}/train")


def number_of(packed: ShardSet, place: SampleLocation) -> int:
    return sum(packed.shard_sizes[: place.shard]) + place.index


def job_of(root: str, **data: object) -> Job:
    return job_for(root, validation=None, **{"shuffle_streams": 4, **data})


def images(number: int) -> torch.Tensor:
    return to_float(tensor(pixels(number)))


def damage(folder: Path, packed: ShardSet, place: SampleLocation) -> None:
    """Flip a bit in the middle of a sample."""
    path = folder / packed.index.shards[place.shard].name
    data = bytearray(path.read_bytes())
    data[int(packed.table(place.shard).offsets[place.index]) + 700] ^= 4
    path.write_bytes(data)


def test_an_epoch_takes_a_request_or_two_for_each_window(
    root: str, counted: type[CountingStorage]
) -> None:
    packed = set_of(root)
    mean = packed.num_bytes // COUNT
    job = job_of(root, read_size=10 * mean, prefetch_memory=60 * mean)
    first_batches(job, 0, 1, COUNT // 8)
    windows = 4 * (100 // 10 + 1)
    # A window at a shard's border takes two, and some of the next epoch's are read ahead.
    assert COUNT // 10 <= len(counted.ranges) <= windows + len(packed.shard_sizes) + 12
    assert max(length for _, _, length in counted.ranges) > 8 * packed.num_bytes // COUNT


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_worker_reads_only_what_it_trains_on(
    root: str, counted: type[CountingStorage], world_size: int
) -> None:
    """With lanes of its own it reads no other's samples, from the middle of an epoch on too."""
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
        mean = set_of(root).num_bytes / COUNT
        wanted = 20 * 8 / world_size
        ahead = 4 * batches_module.BATCHES_AHEAD * 8 / world_size + 4 * 10
        assert num_bytes <= (wanted + ahead) * mean


def test_the_first_batch_needs_little(root: str, counted: type[CountingStorage]) -> None:
    packed = set_of(root)
    job = job_of(root, shuffle_streams=96, read_size=packed.num_bytes // 96)
    batches = ShardStream(job, 0, 1).training(0)
    next(batches)
    read = sum(length for _, _, length in counted.ranges)
    batches.close()
    assert read < packed.num_bytes / 4


@pytest.mark.parametrize(
    ("lanes", "window", "expected"),
    [(96, 1 << 30, 3), (96, 10_000, 24), (96, 4_000, 96), (5, 1 << 30, 5), (8, 100_000, 4)],
)
def test_a_small_set_has_fewer_lanes_so_that_each_has_a_window(
    root: str, lanes: int, window: int, expected: int
) -> None:
    packed = set_of(root)
    assert 400_000 < packed.num_bytes < 500_000
    job = job_of(root, shuffle_streams=lanes, read_size=window, prefetch_memory=1 << 40)
    assert ShardStream(job, 0, 1)._order.lanes == expected


def test_memory_is_used_again_only_when_no_batch_is_on_it_any_more(root: str) -> None:
    taken = ShardStream(job_of(root), 0, 1).training(0)
    held = [next(taken) for _ in range(12)]
    wanted = [batch.images.clone() for batch in held]
    parts = [batch.split(3)[1] for batch in held]
    places = {batch.images.data_ptr() for batch in held}
    assert len(places) == 12
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
    assert len(later) <= 8, "a few batches' memory serves all"


def test_reading_ahead_is_bounded_by_the_memory_of_the_job(
    root: str, counted: type[CountingStorage]
) -> None:
    packed = set_of(root)
    mean = packed.num_bytes // COUNT
    windows = 4 * 5 * mean
    job = job_of(root, shuffle_streams=4, read_size=5 * mean, prefetch_memory=4 * windows // 3 + 1)
    batches, held = ShardStream(job, 0, 1).training(0), []
    for taken in range(1, 60):
        next(batches)
        held.append(sum(length for _, _, length in counted.ranges) - 8 * taken * mean)
    batches.close()
    decoded = (1 + batches_module.BATCHES_AHEAD) * 8 * mean
    assert max(held) <= job.data.prefetch_memory + decoded + 2 * 5 * mean


def test_samples_far_apart_are_not_read_in_one_request(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = set_of(root)
    asked = []
    honest = FolderStorage.get_range
    monkeypatch.setattr(
        FolderStorage,
        "get_range",
        lambda self, key, start, length: asked.append(length) or honest(self, key, start, length),
    )
    shards, indices = numpy.array([0, 1, 0, 0]), numpy.array([20, 3, 1, 0])
    for gap, requests in ((1 << 20, 2), (0, 3)):
        asked.clear()
        monkeypatch.setattr(window_reader, "LARGEST_GAP", gap)
        found = window_reader.read_samples(packed, shards, indices)
        assert len(asked) == requests
        for place, encoded in zip(zip(shards, indices, strict=True), found, strict=True):
            members = packed.split(encoded.data, "here")
            assert members["image"] == packed.read(*map(int, place))["image"]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_workers_that_do_not_divide_the_lanes_see_the_same_samples(
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


def test_an_epoch_has_every_sample_once_whatever_the_window(root: str) -> None:
    wanted = sorted(images(n).numpy().tobytes() for n in range(COUNT))
    for window in ("1KiB", "20KiB", "4MiB"):
        batches = first_batches(job_of(root, shuffle_streams=7, read_size=window), 0, 1, COUNT // 8)
        found = sorted(image.numpy().tobytes() for b in batches for image in b.images)
        assert found == wanted


@pytest.fixture
def copied(root: str, tmp_path: Path) -> Path:
    """The same set once more, to be damaged."""
    (tmp_path / "train").mkdir()
    for path in Path(root, "train").iterdir():
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_damaged_sample_is_told_of_and_replaced_by_its_neighbour_on_any_workers(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = set_of(str(copied))
    job = job_of(str(copied), max_corrupt_fraction=0.1)
    order = stream_order(job, packed)
    place = order.at(30)
    damage(copied / "train", packed, place)
    neighbour = SampleLocation(place.shard, (place.index + 1) % packed.shard_sizes[place.shard])
    shard = packed.index.shards[place.shard].name
    for world_size in (1, 2, 4):
        caplog.clear()
        seen = {}
        for rank in range(world_size):
            worker = ShardStream(job, rank, world_size)
            taken = worker.training(0)
            seen |= by_position(list(islice(taken, 100)))
            taken.close()
            told = [r for r in caplog.records if "replaced by its neighbour" in r.message]
            caplog.clear()
            assert len(told) == worker.counts()["corrupt_samples"], (
                "told once, though met in two epochs"
            )
            if 30 % world_size == rank:
                (line,) = worker.corrupt_samples()
                assert f"{shard}, sample {place.index}: the bytes are not those" in line
        for n, (image, _) in seen.items():
            at = order.at(n)
            expected = number_of(packed, neighbour if at == place else at)
            assert torch.equal(image, images(expected))


def stream_order(job: Job, packed: ShardSet) -> SampleOrder:
    order = ShardStream(job, 0, 1)._order
    assert order.num_samples == packed.num_samples
    return order


def test_more_damage_than_the_job_allows_ends_the_training_with_exit_code_4(copied: Path) -> None:
    packed = set_of(str(copied))
    job = job_of(str(copied), max_corrupt_fraction=0.01)
    order = stream_order(job, packed)
    for n in range(3, 200, 20):
        damage(copied / "train", packed, order.at(n))
    taken = ShardStream(job, 0, 1).training(0)
    told = r"5 damaged on this worker, where data\.max_corrupt_fraction allows 4"
    with pytest.raises(DataError, match=told) as e:
        list(islice(taken, 50))
    assert e.value.exit_code == 4


def test_a_missing_shard_ends_the_training_at_once_and_is_named(copied: Path) -> None:
    shard = set_of(str(copied)).index.shards[3].name
    (copied / "train" / shard).unlink()
    taken = ShardStream(job_of(str(copied)), 0, 1).training(0)
    with pytest.raises(DataError, match=f"train/{shard} is missing, but the index names it"):
        list(islice(taken, 50))
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "decode"))]


def test_a_stall_names_the_rank_and_the_request(
    root: str,
    counted: type[CountingStorage],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(batches_module, "STALL_S", 0.3)
    worker = ShardStream(job_of(root), 1, 2)
    counted.gate.clear()
    opener = threading.Timer(1.0, counted.gate.set)
    opener.start()
    taken = worker.training(0)
    with caplog.at_level(logging.WARNING):
        next(taken)
    taken.close()
    told = [record.message for record in caplog.records if "no batch for" in record.message]
    assert len(told) >= 2
    assert "rank 1 waits for" in told[0]
    assert "/train/0000" in told[0]
    assert "bytes" in told[0]


def test_a_second_epoch_comes_from_the_cache_and_ranks_share_it(
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
    assert sum(length for _, _, length in counted.ranges) <= packed.num_bytes
    assert worker.counts()["cache_hits"] > 0
    counted.ranges.clear()
    first_batches(job, 1, 2, 50)
    assert counted.ranges == []


def test_a_damaged_block_of_the_cache_is_read_anew(root: str, tmp_path: Path) -> None:
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


def test_the_index_stays_small_and_tables_are_read_when_needed(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under 16 bytes a sample on the wire, the index's share of a shard of 64 MiB included."""
    packed = set_of(root)
    tables = sum(p.stat().st_size for p in Path(root, "train").glob("*.idx"))
    assert tables == 8 * COUNT
    entry = len(json.dumps(packed.index.shards[0].model_dump(by_alias=True)))
    assert 8 + entry / 1000 < 16
    asked = []
    honest = FolderStorage.get
    monkeypatch.setattr(
        FolderStorage, "get", lambda self, key: asked.append(key) or honest(self, key)
    )
    opened = open_set(f"{root}/train")
    assert asked == ["index.json"]
    opened.read(2, 0)
    opened.read(2, 1)
    assert asked == ["index.json", "000002.tar.idx"]
