"""Batches of several sets mixed by weight: equal for any number of workers and any resumption."""

import logging
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config.data_section import DataSection
from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.compatibility import open_training_set
from orchestrator.data.loading.mixture import Mixture
from orchestrator.data.loading.sampler import SampleOrder
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import DataError
from orchestrator.seeding import seed_of
from support.sample_sets import (
    AUGMENT,
    NUM_SINGLE,
    SIZE,
    CountingStorage,
    assert_same_images,
    by_position,
    first_batches,
    images,
    job_for,
    pixels,
    png,
    write_set,
)

FEW, FIRST = 64, 1000
"""Samples of the second set, and the number of its first one."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("few") / "train")
    return write_set(uri, FEW, first=FIRST, fields=("image",))


def mix(*sets: tuple[str, float], **data: Any) -> Job:
    """A job on these sets, with 12 shuffle streams of small windows."""
    job, train = job_for("nowhere"), [{"path": uri, "weight": weight} for uri, weight in sets]
    small = {"shuffle_streams": 12, "read_size": "8KiB", "threads": 3}
    section = DataSection.model_validate({"train": train, **small, **data})
    return job.model_copy(update={"data": section})


@pytest.fixture
def job(root: str, few: str) -> Job:
    return mix((f"{root}/train", 3), (few, 1))


def test_batches_contain_the_samples_of_the_mixture(root: str, few: str, job: Job) -> None:
    found = by_position(first_batches(job, 0, 1, 250))
    # 12 streams: three quarters of the memory fit 6 windows of 8 KiB, one quarter 3.
    mixture = Mixture([3, 1], 5, num_lanes=12, num_streams=[6, 3])
    sets = [open_set(f"{root}/train"), open_set(few)]
    window = [8192 * s.num_samples // s.num_bytes for s in sets]
    orders = [
        SampleOrder(s.shard_sizes, seed_of("order", 5, k), num_streams=n, window_size=size)
        for k, (s, n, size) in enumerate(zip(sets, (6, 3), window, strict=True))
    ]
    for draw in islice(mixture.draws(0), 2000):
        location = orders[draw.part].locate(draw.number)
        number = sum(sets[draw.part].shard_sizes[: location.shard]) + location.index
        assert torch.equal(found[draw.position][0], images(number + FIRST * draw.part))


def test_no_sample_comes_twice_in_a_pass_of_its_set(root: str, job: Job) -> None:
    """A pass of a set is as many images as it has: some come after the first of the next pass."""
    known = {
        images(n).numpy().tobytes(): n for n in (*range(NUM_SINGLE), *range(FIRST, FIRST + FEW))
    }
    batches = first_batches(job, 0, 1, 400)
    seen = Counter(known[i.numpy().tobytes()] for batch in batches for i in batch.images)
    of_few = [seen[n] for n in range(FIRST, FIRST + FEW)]
    of_many = [seen[n] for n in range(NUM_SINGLE)]
    assert abs(sum(of_few) - 800) <= 3
    assert set(of_few) <= {11, 12, 13, 14}, "12.5 passes"
    assert set(of_many) <= {5, 6, 7}, "6 passes"


@pytest.mark.parametrize("world_size", [2, 3, 5, 7])
def test_any_number_of_workers_gets_the_same_samples(root: str, few: str, world_size: int) -> None:
    job = mix((f"{root}/train", 2), (few, 0.7), **AUGMENT)
    alone = by_position(first_batches(job, 0, 1, 60))
    assert sorted(alone) == list(range(480))
    each = [first_batches(job, rank, world_size, 60) for rank in range(world_size)]
    together = by_position([batch for rank in each for batch in rank])
    assert together.keys() == alone.keys()
    assert all(torch.equal(alone[n][0], together[n][0]) for n in alone)


def test_a_resumed_stream_continues_the_uninterrupted_one(job: Job) -> None:
    whole = [first_batches(job, rank, 2, 110) for rank in (0, 1)]
    for step in (1, 2, 13, 50, 51, 77, 99):
        for rank in (0, 1):
            resumed = by_position(first_batches(job, rank, 2, 8, start=8 * step))
            wanted = by_position(whole[rank][step : step + 8])
            assert resumed.keys() == wanted.keys()
            assert all(torch.equal(resumed[n][0], wanted[n][0]) for n in wanted), step


def test_the_inputs_of_unpaired_sets_come_from_the_set_of_their_target(tmp_path: Path) -> None:
    sets = [write_set(str(tmp_path / f"{n}"), 40, first=n) for n in (0, 500)]
    job = mix((sets[0], 1), (sets[1], 1)).model_copy(
        update={"model": job_for("", ("unpaired",)).model}
    )
    numbers = [*range(40), *range(500, 540)]
    targets = {images(1000 + n).numpy().tobytes(): n for n in numbers}
    inputs = {images(n).numpy().tobytes(): n for n in numbers}
    alone = by_position(first_batches(job, 0, 1, 20))
    assert_same_images(
        alone,
        by_position([b for rank in range(2) for b in first_batches(job, rank, 2, 20)]),
    )
    chosen = set()
    for image, condition in alone.values():
        assert condition is not None
        pair = targets[image.numpy().tobytes()], inputs[condition.numpy().tobytes()]
        chosen.add(pair[0] == pair[1])
        assert (pair[0] < 500) == (pair[1] < 500)
    assert False in chosen


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_worker_reads_only_its_own_windows_within_the_memory(
    root: str, few: str, counted: type[CountingStorage], world_size: int
) -> None:
    total = sum(open_set(uri).num_bytes for uri in (f"{root}/train", few))
    memory = "128KiB"
    job = mix((f"{root}/train", 3), (few, 1), prefetch_memory=memory, shuffle_streams=16)
    read, images_read = 0, 60 * 8
    for rank in range(world_size):
        counted.ranges.clear()
        first_batches(job, rank, world_size, 60)
        read += sum(length for _, _, length in counted.ranges)
        assert max(length for _, _, length in counted.ranges) < 10_000
    mean = total / (NUM_SINGLE + FEW)
    ahead = world_size * (128 << 10)  # a quarter of it is read ahead, three quarters are windows
    assert read < images_read * mean + ahead


def test_a_corrupt_sample_is_replaced_for_any_number_of_workers(
    root: str, few: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = Path(shutil.copytree(few, tmp_path / "damaged"))
    packed = open_set(str(damaged))
    path = damaged / packed.index.shards[0].name
    data = bytearray(path.read_bytes())
    data[int(packed.table(0).starts[7]) + 700] ^= 4
    path.write_bytes(data)
    job = mix((f"{root}/train", 1), (str(damaged), 1))
    intact = by_position(first_batches(mix((f"{root}/train", 1), (few, 1)), 0, 1, 30))
    with caplog.at_level(logging.WARNING):
        alone = by_position(first_batches(job, 0, 1, 30))
    assert f"{path}, sample 7" in caplog.text
    two = by_position([b for rank in range(2) for b in first_batches(job, rank, 2, 30)])
    assert all(torch.equal(alone[n][0], two[n][0]) for n in alone)
    changed = [n for n in alone if not torch.equal(alone[n][0], intact[n][0])]
    assert changed
    assert all(torch.equal(intact[n][0], images(FIRST + 7)) for n in changed)
    assert all(torch.equal(alone[n][0], images(FIRST + 8)) for n in changed)


@pytest.mark.server
def test_a_folder_and_a_bucket_are_mixed_as_two_folders(
    root: str, few: str, s3: str, job: Job
) -> None:
    write_set(f"{s3}/few", FEW, first=FIRST, fields=("image",))
    mixed = mix((f"{root}/train", 3), (f"{s3}/few", 1))
    local, remote = (by_position(first_batches(j, 0, 1, 30)) for j in (job, mixed))
    assert all(torch.equal(local[n][0], remote[n][0]) for n in local)
    assert open_training_set(job).digest == open_training_set(mixed).digest


def test_examples_without_a_validation_set_are_spread_over_all_sets(job: Job) -> None:
    found = ShardStream(job, 0, 2).examples(8)
    assert found.positions.tolist() == list(range(0, 464, 58))
    assert torch.equal(found.images[0], images(0))
    assert torch.equal(found.images[7], images(FIRST + 406 - NUM_SINGLE))


def test_an_epoch_is_as_long_as_all_sets_and_the_digest_has_sets_and_shares(
    root: str, few: str, job: Job
) -> None:
    assert ShardStream(job, 0, 1).num_samples == NUM_SINGLE + FEW
    many = f"{root}/train"
    assert open_training_set(job).passes(1600) == [3, 6.25]
    single = job.model_copy(update={"data": DataSection(train=many)})
    assert open_training_set(single).digest == open_set(many).digest
    mixes = [((many, 3), (few, 1)), ((many, 1), (few, 1)), ((few, 1), (many, 3))]
    digests = [open_training_set(mix(*sets)).digest for sets in mixes]
    assert len({*digests, open_set(many).digest, open_set(few).digest}) == 5
    assert open_training_set(mix((many, 6), (few, 2))).digest == digests[0]


def write_other(uri: Path, **options: Any) -> str:
    given = {"image_size": SIZE, "channels": 3, "fields": ("image",), "classes": (), **options}
    fields = given.pop("fields")
    writer = ShardWriter(str(uri), fields, **given)
    for n in range(9):
        image = png(pixels(n, channels=given["channels"], size=given["image_size"]))
        label = 0 if given["classes"] else None
        caption = "x" if given.get("captions") else None
        writer.add(f"s{n}", dict.fromkeys(fields, image), label, caption)
    writer.finish()
    return str(uri)


@pytest.mark.parametrize(
    ("options", "ours", "theirs"),
    [
        ({"image_size": 16}, "images of 8 px", "images of 16 px"),
        ({"fields": ("a", "b")}, "the fields image", "the fields a, b"),
        ({"classes": ("cat", "dog")}, r"the classes \(none\)", "the classes cat, dog"),
        ({"captions": True}, "no captions", "its own captions"),
    ],
)
def test_sets_that_differ_are_refused_in_one_line(
    few: str, tmp_path: Path, options: dict[str, Any], ours: str, theirs: str
) -> None:
    other = write_other(tmp_path / "other", **options)
    fitting = {"augment": {"resize": SIZE}}
    with pytest.raises(DataError, match=f"^{few} has {ours}, and {other} has {theirs}; [^\n]+$"):
        ShardStream(mix((few, 1), (other, 1), **fitting), 0, 1)


def test_a_set_of_other_channels_equal_data_and_an_empty_or_missing_set_are_refused(
    few: str, tmp_path: Path
) -> None:
    grey = write_other(tmp_path / "grey", channels=1)
    with pytest.raises(DataError, match=f"{grey} has images of 1 channels"):
        open_training_set(mix((few, 1), (grey, 1)))
    copy = shutil.copytree(few, tmp_path / "copy")
    with pytest.raises(DataError, match=f"{few} and {copy} are the same data .*twice in a pass"):
        open_training_set(mix((few, 1), (str(copy), 1)))
    with pytest.raises(DataError, match=f"there is no packed set at {tmp_path}/nowhere"):
        open_training_set(mix((few, 1), (f"{tmp_path}/nowhere", 1)))
    small = [write_set(str(tmp_path / str(n)), 3, 9 * n, ("image",)) for n in range(2)]
    with pytest.raises(DataError, match=r"0 and .*1 have 6 samples, fewer than one batch"):
        open_training_set(mix(*((uri, 1) for uri in small)))
