"""Labels, captions, binarization and unpaired inputs of the batches."""

from pathlib import Path

import pytest
import torch

from orchestrator.config.job import Job
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.transforms import to_float
from orchestrator.errors import DataError
from orchestrator.models.parts.text import CAPTION_BYTES, caption_bytes
from orchestrator.seeding import seed_of
from support.sample_sets import (
    NUM_TRAIN,
    SIZE,
    assert_same_images,
    by_position,
    first_batches,
    job_for,
    not_none,
    pixels,
    png,
    tensor,
    write_pairs,
    write_set,
)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return write_pairs(tmp_path)


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """Single images of three classes: sample n has the label n % 3 and n in its caption."""
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
    return f"żółw {number}" if number % 2 else "x" * 250 + f" {number} is too long"


def test_labels_and_captions_match_their_images_for_any_number_of_workers(
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
            labels, captions = not_none(batch.labels), not_none(batch.captions)
            assert labels.dtype == torch.int64
            assert (captions.dtype, captions.shape[1]) == (torch.uint8, CAPTION_BYTES)
            for image, label, caption, position in zip(
                batch.images, labels, captions, batch.positions, strict=True
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
    labels = [int(n) for b in ShardStream(job, 0, 1).validation() for n in not_none(b.labels)]
    assert labels == [n % 3 for n in range(500, 511)]


def test_a_caption_is_truncated_or_padded_to_256_bytes() -> None:
    assert bytes(caption_bytes("é" * 200).tolist()) == "é".encode() * 128
    assert bytes(caption_bytes("ab").tolist()) == b"ab" + bytes(254)
    assert bytes(caption_bytes("").tolist()) == bytes(256)


def write_multiple(root: Path) -> str:
    """Sample n has n % 4 + 1 captions, a line each."""
    for part in ("train", "validation"):
        writer = ShardWriter(
            str(root / part),
            ("image",),
            image_size=SIZE,
            channels=3,
            captions=True,
            multiple_captions=True,
            shard_bytes=20_000,
        )
        for n in range(NUM_TRAIN):
            lines = [f"{n}.{k}" for k in range(n % 4 + 1)]
            writer.add(f"s{n}", {"image": png(pixels(n))}, caption="\n".join(lines))
        writer.finish()
    return str(root)


def drawn_captions(job: Job, world_size: int, count: int, start: int = 0) -> dict[int, str]:
    return {
        int(position): bytes(caption.tolist()).rstrip(b"\0").decode()
        for rank in range(world_size)
        for batch in first_batches(job, rank, world_size, count, start)
        for caption, position in zip(not_none(batch.captions), batch.positions, strict=True)
    }


def test_one_of_several_captions_is_drawn_by_seed_and_position(tmp_path: Path) -> None:
    job = job_for(write_multiple(tmp_path), ("captions",))
    epochs = 40
    num_batches = epochs * NUM_TRAIN // 8
    drawn = drawn_captions(job, 1, num_batches)
    visits: dict[int, list[int]] = {n: [] for n in range(NUM_TRAIN)}
    for position, text in drawn.items():
        number, line = map(int, text.split("."))
        choices = number % 4 + 1
        assert line == seed_of("caption", job.train.seed, position) % choices
        visits[number].append(line)
    assert {n % 4 + 1 for n, lines in visits.items() if len(set(lines)) == n % 4 + 1} == {
        1,
        2,
        3,
        4,
    }
    lines = [line for n, found in visits.items() if n % 4 == 3 for line in found]
    for line in range(4):
        assert 0.2 < lines.count(line) / len(lines) < 0.3


def test_the_drawn_captions_are_the_same_for_any_workers_and_after_resuming(tmp_path: Path) -> None:
    job = job_for(write_multiple(tmp_path), ("captions",))
    one = drawn_captions(job, 1, 20)
    two = drawn_captions(job, 2, 20)
    assert two == one
    resumed = drawn_captions(job, 1, 8, start=96)
    assert resumed == {position: text for position, text in one.items() if position >= 96}
    other = job.model_copy(update={"train": job.train.model_copy(update={"seed": 6})})
    assert drawn_captions(other, 1, 20) != one


def test_validation_always_sees_the_first_of_several_captions(tmp_path: Path) -> None:
    job = job_for(write_multiple(tmp_path), ("captions",))
    for _ in range(2):
        batches = ShardStream(job, 0, 1).validation()
        texts = [bytes(c.tolist()).rstrip(b"\0") for b in batches for c in not_none(b.captions)]
        assert texts == [f"{n}.0".encode() for n in range(NUM_TRAIN)]


def test_a_set_without_the_classes_or_captions_of_the_model_is_rejected(
    labelled: str, tmp_path: Path
) -> None:
    plain = write_set(str(tmp_path / "plain" / "train"), 8, fields=("image",))[: -len("/train")]
    for job, message in [
        (job_for(labelled, ("labels",), classes=4), r"has 3 classes, but .* set model\.classes: 3"),
        (job_for(plain, ("labels",), classes=4, validation=None), "has no classes"),
        (job_for(plain, ("captions",), validation=None), "has no captions"),
    ]:
        with pytest.raises(DataError, match=message):
            ShardStream(job, 0, 1)


def epochs(job: Job, count: int) -> list[dict[bytes, torch.Tensor]]:
    """The images of each epoch by their captions, which identify the samples."""
    stream = ShardStream(job, 0, 1).training(0)
    found: list[list[tuple[bytes, torch.Tensor]]] = [[] for _ in range(count)]
    while len(found[-1]) < NUM_TRAIN:
        batch = next(stream)
        for image, caption, position in zip(
            batch.images, not_none(batch.captions), batch.positions.tolist(), strict=True
        ):
            if position < count * NUM_TRAIN:
                found[position // NUM_TRAIN].append((bytes(caption.tolist()), image))
    stream.close()
    return [dict(each) for each in found]


def test_dynamic_binarization_changes_each_epoch_and_fixed_does_not(labelled: str) -> None:
    for how, same in (("dynamic", False), ("fixed", True)):
        first, second = epochs(job_for(labelled, binarize=how), 2)
        assert first.keys() == second.keys()
        for name, image in first.items():
            assert set(image.unique().tolist()) == {-1, 1}
            assert torch.equal(image, second[name]) is same
    grey = torch.stack([*epochs(job_for(labelled), 1)[0].values()])
    dynamic = torch.stack([*epochs(job_for(labelled, binarize="dynamic"), 1)[0].values()])
    # 10,176 values each with a deviation of at most 1: four standard errors are 0.04.
    assert float(dynamic.mean()) == pytest.approx(float(grey.mean()), abs=0.04)
    assert float(((dynamic - grey) * grey).mean()) == pytest.approx(0, abs=0.03)


def test_validation_images_are_binarized_once(labelled: str) -> None:
    drawn = []
    for how in ("dynamic", "fixed"):
        stream = ShardStream(job_for(labelled, binarize=how), 0, 1)
        for _ in range(2):
            drawn.append(torch.cat([batch.images for batch in stream.validation()]))
    assert all(torch.equal(drawn[0], each) for each in drawn)
    assert set(drawn[0].unique().tolist()) == {-1, 1}


def test_unpaired_inputs_come_from_the_whole_set_for_any_number_of_workers(pairs: str) -> None:
    job = job_for(pairs, ("unpaired",))
    conditions = {to_float(tensor(pixels(n))).numpy().tobytes(): n for n in range(NUM_TRAIN)}
    targets = {to_float(tensor(pixels(1000 + n))).numpy().tobytes(): n for n in range(NUM_TRAIN)}
    seen = []
    for world_size in (1, 2, 4):
        batches = [
            b for rank in range(world_size) for b in first_batches(job, rank, world_size, 40)
        ]
        seen.append(by_position(batches))
        assert_same_images(seen[0], seen[-1])
    partners = [
        (targets[image.numpy().tobytes()], conditions[not_none(given).numpy().tobytes()])
        for image, given in seen[0].values()
    ]
    assert len(partners) == 320
    num_own = sum(target == partner for target, partner in partners)
    # 320 / 53 = 6 on average are their own by chance.
    assert num_own <= 18
    assert len({partner for _, partner in partners}) > 45, "inputs come from the whole set"
    later = dict(partners[:NUM_TRAIN])
    again = dict(partners[NUM_TRAIN : 2 * NUM_TRAIN])
    assert later != again, "each epoch has other inputs"


def test_unpaired_validation_keeps_the_packed_pairs(pairs: str) -> None:
    batches = list(ShardStream(job_for(pairs, ("unpaired",)), 0, 1).validation())
    given = torch.cat([not_none(batch.condition) for batch in batches])
    assert torch.equal(given, torch.stack([to_float(tensor(pixels(n))) for n in range(500, 511)]))
