"""What a worker gets: the same samples and pixels for any workers, place and resumption."""

import io
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from orchestrator.config.job import DataSection, Job, TrainSection
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.sampler import SampleOrder
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.transforms import augment, to_float
from orchestrator.errors import DataError
from orchestrator.models.base import Batch, Input, ModelConfig
from orchestrator.models.parts.text import CAPTION_BYTES, caption_bytes
from orchestrator.seeding import seed_of

SIZE = 8
NUM_TRAIN = 53


class TinyConfig(ModelConfig):
    """Config of a model that is never built."""

    inputs: tuple[Input, ...] = ()
    classes: int = 0

    @property
    def takes(self) -> frozenset[Input]:
        return frozenset(self.inputs)

    @property
    def num_classes(self) -> int:
        return self.classes


def pixels(number: int, channels: int = 3, size: int = SIZE) -> numpy.ndarray:
    shape = (size, size, 3) if channels == 3 else (size, size)
    return numpy.random.default_rng(number).integers(0, 256, shape, numpy.uint8)


def png(array: numpy.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(array: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def write_set(uri: str, count: int, first: int = 0, fields: tuple[str, ...] = ("a", "b")) -> str:
    writer = ShardWriter(uri, fields, image_size=SIZE, channels=3, shard_bytes=20_000)
    for n in range(first, first + count):
        writer.add(f"s{n}", {f: png(pixels(1000 * k + n)) for k, f in enumerate(fields)})
    writer.finish()
    return uri


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    write_set(str(tmp_path / "validation"), 11, first=500)
    return write_set(str(tmp_path / "train"), NUM_TRAIN).removesuffix("/train")


def job_for(
    root: str,
    takes: tuple[Input, ...] = (),
    image_size: int = SIZE,
    classes: int = 0,
    **data: object,
) -> Job:
    section = {"validation": f"{root}/validation", "threads": 3, **data}
    return Job(
        name="test",
        model=TinyConfig(name="tiny", image_size=image_size, inputs=takes, classes=classes),
        data=DataSection.model_validate({"train": f"{root}/train", **section}),
        train=TrainSection(epochs=1, batch_size=8, seed=5),
    )


def first_batches(job: Job, rank: int, world_size: int, count: int, start: int = 0) -> list[Batch]:
    batches = ShardStream(job, rank, world_size).training(start)
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def by_position(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, torch.Tensor | None]]:
    return {
        int(position): (batch.images[k], None if batch.condition is None else batch.condition[k])
        for batch in batches
        for k, position in enumerate(batch.positions)
    }


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for position, (image, condition) in one.items():
        assert torch.equal(image, two[position][0])
        assert torch.equal(condition, two[position][1])


AUGMENT = {"augment": {"resize": 10, "crop": 8, "flip": True}}


def test_batches_hold_the_samples_that_the_order_names(pairs: str) -> None:
    job = job_for(pairs)
    packed = open_set(job.data.train)
    order = SampleOrder(packed.shard_sizes, seed_of("order", 5), lanes=3)  # of 96, for it is small
    starts = numpy.cumsum([0, *packed.shard_sizes])
    for n, (image, condition) in by_position(first_batches(job, 0, 1, 14)).items():
        place = order.at(n)
        number = int(starts[place.shard]) + place.index
        assert torch.equal(condition, to_float(tensor(pixels(number))))
        assert torch.equal(image, to_float(tensor(pixels(1000 + number))))


def test_batches_are_what_the_models_contract_says(pairs: str) -> None:
    stream = ShardStream(job_for(pairs, **AUGMENT), 1, 2)
    batch = next(batches := stream.training(16))
    batches.close()
    assert batch.images.shape == batch.condition.shape == (4, 3, SIZE, SIZE)
    assert batch.images.dtype == batch.condition.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert batch.condition.is_contiguous()
    assert batch.positions.dtype == torch.int64
    assert batch.positions.tolist() == [17, 19, 21, 23]
    assert -1 <= batch.images.min() < -0.9
    assert 0.9 < batch.images.max() <= 1
    assert (stream.num_samples, stream.num_validation) == (NUM_TRAIN, 11)


def test_any_number_of_workers_sees_the_same_samples_alike_augmented(pairs: str) -> None:
    job = job_for(pairs, **AUGMENT)
    alone = by_position(first_batches(job, 0, 1, 9))
    assert sorted(alone) == list(range(72)), "over the end of an epoch"
    for world_size in (2, 3, 4, 7):
        each = [first_batches(job, rank, world_size, 9) for rank in range(world_size)]
        sizes = {len(batches[0]) for batches in each}
        assert max(sizes) - min(sizes) <= 1, "shares differ by one image at most"
        assert_equal(alone, by_position([batch for rank in each for batch in rank]))


def test_augmentation_is_that_of_transforms_keyed_by_seed_and_position(pairs: str) -> None:
    plain = by_position(first_batches(job_for(pairs), 0, 1, 2))
    changed = by_position(first_batches(job_for(pairs, **AUGMENT), 0, 1, 2))
    section = job_for(pairs, **AUGMENT).data.augment
    for position, (image, _) in plain.items():
        raw = ((image + 1) * 127.5).round().to(torch.uint8)
        key = seed_of("augment", 5, position)
        changes = augment({"i": raw.permute(1, 2, 0).numpy()}, section, SIZE, key)
        expected = to_float(tensor(changes["i"]))
        # Torch resizes planes and interleaved pixels by two kernels that round differently.
        assert (changed[position][0] - expected).abs().max() < 2.1 / 127.5


def test_a_resumed_stream_is_the_rest_of_the_uninterrupted_one(pairs: str) -> None:
    job = job_for(pairs, **AUGMENT)
    whole = first_batches(job, 1, 2, 12)
    resumed = first_batches(job, 1, 2, 5, start=7 * 8)
    assert_equal(by_position(whole[7:]), by_position(resumed))


def test_a_folder_and_a_bucket_give_identical_batches(pairs: str, s3: str) -> None:
    write_set(f"{s3}/validation", 11, first=500)
    write_set(f"{s3}/train", NUM_TRAIN)
    local, remote = job_for(pairs, **AUGMENT), job_for(s3, **AUGMENT)
    assert_equal(
        by_position(first_batches(local, 0, 1, 8)), by_position(first_batches(remote, 0, 1, 8))
    )
    one, two = (list(ShardStream(job, 0, 1).validation()) for job in (local, remote))
    assert_equal(by_position(one), by_position(two))
    assert open_set(local.data.train).digest == open_set(remote.data.train).digest


def test_direction_says_which_image_is_the_input(pairs: str) -> None:
    there = by_position(first_batches(job_for(pairs), 0, 1, 1))
    back = by_position(first_batches(job_for(pairs, direction="BtoA"), 0, 1, 1))
    for position, (image, condition) in there.items():
        assert torch.equal(back[position][0], condition)
        assert torch.equal(back[position][1], image)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_validation_is_dealt_out_once_in_runs_of_neighbours(pairs: str, world_size: int) -> None:
    seen: dict[int, tuple] = {}
    for rank in range(world_size):
        batches = list(ShardStream(job_for(pairs, **AUGMENT), rank, world_size).validation())
        assert all(len(batch) <= 8 // world_size for batch in batches)
        mine = by_position(batches)
        assert list(mine) == list(range(rank * 11 // world_size, (rank + 1) * 11 // world_size))
        seen |= mine
    for position, (image, condition) in seen.items():
        assert torch.equal(condition, to_float(tensor(pixels(500 + position))))
        assert torch.equal(image, to_float(tensor(pixels(1500 + position))))


def test_a_rank_without_validation_samples_gets_no_batches(tmp_path: Path) -> None:
    write_set(str(tmp_path / "validation"), 2)
    write_set(str(tmp_path / "train"), 8)
    job = job_for(str(tmp_path))
    assert [len(list(ShardStream(job, rank, 4).validation())) for rank in range(4)] == [0, 1, 0, 1]
    without = ShardStream(job_for(str(tmp_path), validation=None), 0, 4)
    assert list(without.validation()) == []
    assert without.num_validation == 0


def test_examples_are_spread_over_the_validation_set_and_the_same_on_every_rank(pairs: str) -> None:
    one, two = (ShardStream(job_for(pairs, **AUGMENT), rank, 2).examples(5) for rank in (0, 1))
    assert one.positions.tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.condition[2], to_float(tensor(pixels(504))))
    assert len(ShardStream(job_for(pairs), 0, 1).examples(100)) == 11
    training = ShardStream(job_for(pairs, validation=None), 0, 1).examples(3)
    step = int(training.positions[1])
    assert torch.equal(training.condition[1], to_float(tensor(pixels(step))))


def test_single_images_have_no_condition(tmp_path: Path) -> None:
    write_set(str(tmp_path / "train"), 8, fields=("image",))
    job = job_for(str(tmp_path), validation=None)
    (batch,) = first_batches(job, 0, 1, 1)
    assert batch.condition is None
    wanted = {to_float(tensor(pixels(n))).numpy().tobytes() for n in range(8)}
    assert {image.numpy().tobytes() for image in batch.images} == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"packed at 8 px, but model\.image_size is 16; pack it again"),
        ({"image_size": 4}, r"packed at 8 px, but model\.image_size is 4"),
        ({"validation": "nowhere"}, "there is no packed set at nowhere"),
    ],
)
def test_sets_that_do_not_fit_the_model_are_refused(
    pairs: str, changes: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ShardStream(job_for(pairs, **changes), 0, 1)


def test_sizes_may_differ_where_augmentation_makes_them_fit(pairs: str) -> None:
    cropped = job_for(pairs, image_size=6, augment={"crop": 6})
    (batch,) = first_batches(cropped, 0, 1, 1)
    assert batch.images.shape[-2:] == (6, 6)
    validation = next(iter(ShardStream(cropped, 0, 1).validation()))
    assert validation.images.shape[-2:] == (6, 6)


def test_a_model_that_translates_needs_pairs(tmp_path: Path) -> None:
    write_set(str(tmp_path / "train"), 8, fields=("image",))
    with pytest.raises(DataError, match="single images, but model tiny translates"):
        ShardStream(job_for(str(tmp_path), ("pairs",), validation=None), 0, 1)


def test_wrong_channels_and_too_few_samples_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path / "train"), ("image",), image_size=SIZE, channels=1)
    writer.add("k", {"image": png(pixels(0, channels=1))})
    writer.finish()
    with pytest.raises(DataError, match=r"1 channels, but model\.channels is 3; .*without --grey"):
        ShardStream(job_for(str(tmp_path), validation=None), 0, 1)
    write_set(str(tmp_path / "few" / "train"), 7)
    with pytest.raises(DataError, match="has 7 samples, less than one batch"):
        ShardStream(job_for(str(tmp_path / "few"), validation=None), 0, 1)


def test_a_damaged_sample_too_many_stops_the_training_in_its_turn(pairs: str) -> None:
    packed = open_set(f"{pairs}/train")
    place = SampleOrder(packed.shard_sizes, seed_of("order", 5), lanes=3).at(30)
    shard = packed.index.shards[place.shard]
    path = Path(pairs, "train", shard.name)
    data = bytearray(path.read_bytes())
    data[int(packed.table(place.shard).offsets[place.index]) + 700] ^= 4
    path.write_bytes(data)
    batches = ShardStream(job_for(pairs, max_corrupt_fraction=0), 0, 1).training(0)
    assert [next(batches).positions[0].item() for _ in range(3)] == [0, 8, 16]
    with pytest.raises(DataError, match=f"{shard.name}, sample {place.index}"):
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


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """Single images of three classes, sample n with the label n % 3 and n in its caption."""
    for part, count, first in (("train", NUM_TRAIN, 0), ("validation", 11, 500)):
        writer = ShardWriter(
            str(tmp_path / part),
            ("image",),
            image_size=SIZE,
            channels=3,
            classes=("ant", "bee", "cat"),
            captions=True,
            shard_bytes=20_000,
        )
        for n in range(first, first + count):
            writer.add(f"s{n}", {"image": png(pixels(n))}, n % 3, caption_of(n))
        writer.finish()
    return str(tmp_path)


def caption_of(number: int) -> str:
    return f"żółw {number}" if number % 2 else "x" * 250 + f" {number} is too long to be kept whole"


def test_labels_and_captions_belong_to_their_images_on_any_number_of_workers(
    labelled: str,
) -> None:
    job = job_for(labelled, ("labels", "captions"), classes=3)
    numbers = {to_float(tensor(pixels(n))).numpy().tobytes(): n for n in range(NUM_TRAIN)}
    seen = []
    for world_size in (1, 2):
        batches = [
            batch for rank in range(world_size) for batch in first_batches(job, rank, world_size, 7)
        ]
        found = {}
        for batch in batches:
            assert batch.labels.dtype == torch.int64
            assert (batch.captions.dtype, batch.captions.shape[1]) == (torch.uint8, CAPTION_BYTES)
            for image, label, caption, position in zip(
                batch.images, batch.labels, batch.captions, batch.positions, strict=True
            ):
                number = numbers[image.numpy().tobytes()]
                assert int(label) == number % 3
                expected = caption_of(number).encode()[:CAPTION_BYTES].ljust(CAPTION_BYTES, b"\0")
                assert bytes(caption.tolist()) == expected
                found[int(position)] = (int(label), bytes(caption.tolist()))
        seen.append(found)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 56


def test_validation_has_labels_and_captions_too(labelled: str) -> None:
    job = job_for(labelled, ("labels",), classes=3)
    labels = [int(n) for b in ShardStream(job, 0, 1).validation() for n in b.labels]
    assert labels == [n % 3 for n in range(500, 511)]


def test_a_caption_is_cut_at_256_bytes_and_filled_up_with_zeros() -> None:
    assert bytes(caption_bytes("é" * 200).tolist()) == "é".encode() * 128
    assert bytes(caption_bytes("ab").tolist()) == b"ab" + bytes(254)
    assert bytes(caption_bytes("").tolist()) == bytes(256)


def test_a_set_without_the_classes_or_captions_of_the_model_is_refused(
    labelled: str, tmp_path: Path
) -> None:
    plain = write_set(str(tmp_path / "plain" / "train"), 8, fields=("image",))[: -len("/train")]
    for job, told in [
        (job_for(labelled, ("labels",), classes=4), r"has 3 classes, but .* set model\.classes: 3"),
        (job_for(plain, ("labels",), classes=4, validation=None), "has no classes"),
        (job_for(plain, ("captions",), validation=None), "has no captions"),
    ]:
        with pytest.raises(DataError, match=told):
            ShardStream(job, 0, 1)


def epochs(job: Job, count: int) -> list[dict[bytes, torch.Tensor]]:
    """The images of each epoch by their captions, which tell the samples apart."""
    stream = ShardStream(job, 0, 1).training(0)
    found = [[] for _ in range(count)]
    while len(found[-1]) < NUM_TRAIN:
        batch = next(stream)
        for image, caption, position in zip(
            batch.images, batch.captions, batch.positions.tolist(), strict=True
        ):
            if position < count * NUM_TRAIN:
                found[position // NUM_TRAIN].append((bytes(caption.tolist()), image))
    stream.close()
    return [dict(each) for each in found]


def test_dynamic_binarisation_draws_anew_in_each_epoch_and_fixed_does_not(labelled: str) -> None:
    captioned = labelled
    for how, same in (("dynamic", False), ("fixed", True)):
        first, second = epochs(job_for(captioned, binarize=how), 2)
        assert first.keys() == second.keys()
        for name, image in first.items():
            assert set(image.unique().tolist()) == {-1, 1}
            assert torch.equal(image, second[name]) is same
    grey = torch.stack([*epochs(job_for(captioned), 1)[0].values()])
    dynamic = torch.stack([*epochs(job_for(captioned, binarize="dynamic"), 1)[0].values()])
    # 10,176 values each with a deviation of at most 1: four standard errors are 0.04.
    assert float(dynamic.mean()) == pytest.approx(float(grey.mean()), abs=0.04)
    assert float(((dynamic - grey) * grey).mean()) == pytest.approx(0, abs=0.03)


def test_held_out_images_are_binarised_once_for_all(labelled: str) -> None:
    drawn = []
    for how in ("dynamic", "fixed"):
        stream = ShardStream(job_for(labelled, binarize=how), 0, 1)
        for _ in range(2):
            drawn.append(torch.cat([batch.images for batch in stream.validation()]))
    assert all(torch.equal(drawn[0], each) for each in drawn)
    assert set(drawn[0].unique().tolist()) == {-1, 1}


def test_unpaired_partners_are_drawn_from_the_whole_set_alike_on_any_workers(pairs: str) -> None:
    job = job_for(pairs, ("unpaired",))
    conditions = {to_float(tensor(pixels(n))).numpy().tobytes(): n for n in range(NUM_TRAIN)}
    targets = {to_float(tensor(pixels(1000 + n))).numpy().tobytes(): n for n in range(NUM_TRAIN)}
    seen = []
    for world_size in (1, 2, 4):
        batches = [
            b for rank in range(world_size) for b in first_batches(job, rank, world_size, 40)
        ]
        seen.append(by_position(batches))
        assert_equal(seen[0], seen[-1])
    partners = [
        (targets[image.numpy().tobytes()], conditions[given.numpy().tobytes()])
        for image, given in seen[0].values()
    ]
    assert len(partners) == 320
    own = sum(target == partner for target, partner in partners)
    # By chance 320 / 53 are their own, 6 on average.
    assert own <= 18
    assert len({partner for _, partner in partners}) > 45, "all of the set takes part"
    later = dict(partners[:NUM_TRAIN])
    again = dict(partners[NUM_TRAIN : 2 * NUM_TRAIN])
    assert later != again, "each epoch has other partners"


def test_unpaired_validation_keeps_what_was_packed_together(pairs: str) -> None:
    batches = list(ShardStream(job_for(pairs, ("unpaired",)), 0, 1).validation())
    given = torch.cat([batch.condition for batch in batches])
    assert torch.equal(given, torch.stack([to_float(tensor(pixels(n))) for n in range(500, 511)]))


def test_every_batch_starts_on_a_cache_line_wherever_memory_was_free(pairs: str) -> None:
    """On other addresses the same convolution is rounded otherwise."""
    job, held = job_for(pairs, **AUGMENT), []
    batches = ShardStream(job, 0, 1).training(0)
    for _ in range(20):
        batch = next(batches)
        held.append((batch, bytearray(1000)))
        assert batch.images.data_ptr() % 64 == 0
        assert batch.condition is not None
        assert batch.condition.data_ptr() % 64 == 0
    batches.close()
