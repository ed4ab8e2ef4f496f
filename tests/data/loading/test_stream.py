"""The batches of a worker: equal for any number of workers, storage and resumption."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.loading.sampler import SampleOrder
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.transforms import augment, to_float
from orchestrator.errors import DataError
from orchestrator.seeding import seed_of
from support.sample_sets import (
    AUGMENT,
    NUM_TRAIN,
    SIZE,
    Images,
    assert_same_images,
    by_position,
    first_batches,
    job_for,
    not_none,
    pixels,
    tensor,
    write_pairs,
    write_set,
)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return write_pairs(tmp_path)


def test_batches_contain_the_samples_of_the_order(pairs: str) -> None:
    job = job_for(pairs)
    packed = open_set(f"{pairs}/train")
    # 96 streams are halved to 3 because the set is small.
    order = SampleOrder(packed.shard_sizes, seed_of("order", 5), num_streams=3)
    starts = numpy.cumsum([0, *packed.shard_sizes])
    for n, (image, condition) in by_position(first_batches(job, 0, 1, 14)).items():
        location = order.locate(n)
        number = int(starts[location.shard]) + location.index
        assert torch.equal(not_none(condition), to_float(tensor(pixels(number))))
        assert torch.equal(image, to_float(tensor(pixels(1000 + number))))


def test_batches_meet_the_model_contract(pairs: str) -> None:
    stream = ShardStream(job_for(pairs, **AUGMENT), 1, 2)
    batch = next(batches := stream.training(16))
    batches.close()
    condition = not_none(batch.condition)
    assert batch.images.shape == condition.shape == (4, 3, SIZE, SIZE)
    assert batch.images.dtype == condition.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert condition.is_contiguous()
    assert batch.positions.dtype == torch.int64
    assert batch.positions.tolist() == [17, 19, 21, 23]
    assert -1 <= batch.images.min() < -0.9
    assert 0.9 < batch.images.max() <= 1
    assert (stream.num_samples, stream.num_validation) == (NUM_TRAIN, 11)


def test_any_number_of_workers_gets_the_same_augmented_samples(pairs: str) -> None:
    job = job_for(pairs, **AUGMENT)
    alone = by_position(first_batches(job, 0, 1, 9))
    assert sorted(alone) == list(range(72)), "beyond the end of an epoch"
    for world_size in (2, 3, 4, 7):
        each = [first_batches(job, rank, world_size, 9) for rank in range(world_size)]
        sizes = {len(batches[0]) for batches in each}
        assert max(sizes) - min(sizes) <= 1, "shares differ by one image at most"
        assert_same_images(alone, by_position([batch for rank in each for batch in rank]))


def test_augmentation_is_seeded_by_the_job_and_the_position(pairs: str) -> None:
    plain = by_position(first_batches(job_for(pairs), 0, 1, 2))
    changed = by_position(first_batches(job_for(pairs, **AUGMENT), 0, 1, 2))
    section = job_for(pairs, **AUGMENT).data.augment
    for position, (image, _) in plain.items():
        raw = ((image + 1) * 127.5).round().to(torch.uint8)
        key = seed_of("augment", 5, position)
        changes = augment({"i": raw.permute(1, 2, 0).numpy()}, section, SIZE, key)
        expected = to_float(tensor(changes["i"]))
        # Torch's kernels for planes and for interleaved pixels round differently.
        assert (changed[position][0] - expected).abs().max() < 2.1 / 127.5


def test_a_resumed_stream_continues_the_uninterrupted_one(pairs: str) -> None:
    job = job_for(pairs, **AUGMENT)
    whole = first_batches(job, 1, 2, 12)
    resumed = first_batches(job, 1, 2, 5, start=7 * 8)
    assert_same_images(by_position(whole[7:]), by_position(resumed))


@pytest.mark.server
def test_a_folder_and_a_bucket_give_identical_batches(pairs: str, s3: str) -> None:
    write_set(f"{s3}/validation", 11, first=500)
    write_set(f"{s3}/train", NUM_TRAIN)
    local, remote = job_for(pairs, **AUGMENT), job_for(s3, **AUGMENT)
    assert_same_images(
        by_position(first_batches(local, 0, 1, 8)), by_position(first_batches(remote, 0, 1, 8))
    )
    one, two = (list(ShardStream(job, 0, 1).validation()) for job in (local, remote))
    assert_same_images(by_position(one), by_position(two))
    assert open_set(f"{pairs}/train").digest == open_set(f"{s3}/train").digest


def test_direction_selects_the_input_image(pairs: str) -> None:
    forward = by_position(first_batches(job_for(pairs), 0, 1, 1))
    back = by_position(first_batches(job_for(pairs, direction="BtoA"), 0, 1, 1))
    for position, (image, condition) in forward.items():
        assert torch.equal(back[position][0], not_none(condition))
        assert torch.equal(not_none(back[position][1]), image)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_validation_is_split_into_consecutive_shares(pairs: str, world_size: int) -> None:
    seen: Images = {}
    for rank in range(world_size):
        batches = list(ShardStream(job_for(pairs, **AUGMENT), rank, world_size).validation())
        assert all(len(batch) <= 8 // world_size for batch in batches)
        mine = by_position(batches)
        assert list(mine) == list(range(rank * 11 // world_size, (rank + 1) * 11 // world_size))
        seen |= mine
    for position, (image, condition) in seen.items():
        assert torch.equal(not_none(condition), to_float(tensor(pixels(500 + position))))
        assert torch.equal(image, to_float(tensor(pixels(1500 + position))))


def test_a_rank_without_validation_samples_gets_no_batches(tmp_path: Path) -> None:
    write_set(str(tmp_path / "validation"), 2)
    write_set(str(tmp_path / "train"), 8)
    job = job_for(str(tmp_path))
    assert [len(list(ShardStream(job, rank, 4).validation())) for rank in range(4)] == [0, 1, 0, 1]
    without = ShardStream(job_for(str(tmp_path), validation=None), 0, 4)
    assert list(without.validation()) == []
    assert without.num_validation == 0


def test_examples_are_spread_over_the_validation_set_and_equal_on_every_rank(pairs: str) -> None:
    one, two = (ShardStream(job_for(pairs, **AUGMENT), rank, 2).examples(5) for rank in (0, 1))
    assert one.positions.tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(one.images, two.images)
    assert torch.equal(not_none(one.condition)[2], to_float(tensor(pixels(504))))
    assert len(ShardStream(job_for(pairs), 0, 1).examples(100)) == 11
    training = ShardStream(job_for(pairs, validation=None), 0, 1).examples(3)
    step = int(training.positions[1])
    assert torch.equal(not_none(training.condition)[1], to_float(tensor(pixels(step))))


def test_single_images_have_no_condition(tmp_path: Path) -> None:
    write_set(str(tmp_path / "train"), 8, fields=("image",))
    job = job_for(str(tmp_path), validation=None)
    (batch,) = first_batches(job, 0, 1, 1)
    assert batch.condition is None
    wanted = {to_float(tensor(pixels(n))).numpy().tobytes() for n in range(8)}
    assert {image.numpy().tobytes() for image in batch.images} == wanted


def test_too_many_corrupt_samples_stop_training_at_their_batch(pairs: str) -> None:
    packed = open_set(f"{pairs}/train")
    location = SampleOrder(packed.shard_sizes, seed_of("order", 5), num_streams=3).locate(30)
    shard = packed.index.shards[location.shard]
    path = Path(pairs, "train", shard.name)
    data = bytearray(path.read_bytes())
    data[int(packed.table(location.shard).starts[location.index]) + 700] ^= 4
    path.write_bytes(data)
    batches = ShardStream(job_for(pairs, max_corrupt_fraction=0), 0, 1).training(0)
    assert [next(batches).positions[0].item() for _ in range(3)] == [0, 8, 16]
    with pytest.raises(DataError, match=f"{shard.name}, sample {location.index}"):
        next(batches)
    assert not decoding_threads()


def decoding_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.fixture
def no_threads_before() -> Iterator[None]:
    assert not decoding_threads()
    yield
    assert not decoding_threads()


@pytest.mark.usefixtures("no_threads_before")
def test_closing_or_dropping_the_iterator_stops_its_threads(pairs: str) -> None:
    stream = ShardStream(job_for(pairs), 0, 1)
    batches = stream.training(0)
    next(batches)
    assert 1 <= len(decoding_threads()) <= 3
    batches.close()
    assert not decoding_threads()
    for _ in stream.training(0):
        break
    list(stream.validation())
    stream.training(0).close()


def test_every_batch_starts_on_a_cache_line(pairs: str) -> None:
    """At other addresses the same convolution is rounded differently."""
    job, held = job_for(pairs, **AUGMENT), []
    batches = ShardStream(job, 0, 1).training(0)
    for _ in range(20):
        batch = next(batches)
        held.append((batch, bytearray(1000)))
        assert batch.images.data_ptr() % 64 == 0
        assert batch.condition is not None
        assert batch.condition.data_ptr() % 64 == 0
    batches.close()
