"""Runs that stream from a real S3 server through a proxy that injects faults."""

import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from orchestrator.config.data_section import AugmentSection, DataSection
from orchestrator.config.job import Job
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.stream import ShardStream
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import train
from services.faulty_s3 import Faults, FaultyS3, faulty_s3
from services.s3 import S3Server
from support.fakes import ListRecorder, MemoryCheckpoints, small_job, without_clock
from support.ranks import WORLD_SIZE, on_two_ranks

pytestmark = [pytest.mark.server, pytest.mark.slow]

SIZE, COUNT = 20, 300
FAULTS = Faults(slow_down=0.05, reset=0.03, truncated=0.03, stalled=0.005, stall_s=12.0)


def png(array: numpy.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def pair(number: int) -> dict[str, bytes]:
    draw = numpy.random.default_rng(number)
    return {name: png(draw.integers(0, 256, (SIZE, SIZE, 3), numpy.uint8)) for name in "ab"}


@pytest.fixture(scope="module")
def dataset(running_s3: S3Server) -> Iterator[str]:
    """Pairs in a bucket, in small shards, which need many requests."""
    before = dict(os.environ)
    os.environ.update(running_s3.environment)
    uri = "s3://tests/faulty-store"
    for part, first, count in (("train", 0, COUNT), ("validation", 1000, 20)):
        writer = ShardWriter(
            f"{uri}/{part}", ("a", "b"), image_size=SIZE, channels=3, shard_bytes=60_000
        )
        for number in range(first, first + count):
            writer.add(f"s{number}", pair(number))
        writer.finish()
    yield uri
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def faulty(running_s3: S3Server, dataset: str) -> Iterator[FaultyS3]:
    with faulty_s3(running_s3, seed=3) as proxy:
        yield proxy


def job_from(uri: str, images: int) -> Job:
    """pix2pix on 16-pixel crops; windows of a few samples, so that there are many requests."""
    job = small_job(images=images, log_every=20, checkpoint_every=images)
    augment = {"crop": 16, "flip": True}
    data = {"train": f"{uri}/train", "validation": f"{uri}/validation", "augment": augment}
    section = DataSection.model_validate({**data, "shuffle_streams": 12, "read_size": "16KiB"})
    return job.model_copy(update={"data": section})


def train_rank(rank: int, out: Path) -> None:
    job = job_from((out / "dataset").read_text(), COUNT)
    recorder, checkpoints = ListRecorder(), MemoryCheckpoints()
    stream = ShardStream(job, rank, WORLD_SIZE)
    worker = Worker(recorder, checkpoints, torch.device("cpu"), rank, WORLD_SIZE)
    train(job, stream, worker)
    if rank == 0:
        points = [(n, without_clock(values)) for n, values in recorder.points]
        torch.save((checkpoints.states[-1].networks, points), out / "result.pt")


def result(
    dataset: str, out: Path, server: S3Server | FaultyS3
) -> tuple[dict[str, Tensor], list[object]]:
    os.environ.update(server.environment)
    out.mkdir()
    (out / "dataset").write_text(dataset)
    on_two_ranks(train_rank, out)
    weights, points = torch.load(out / "result.pt")
    return weights, points


def test_two_workers_end_with_the_same_bits_as_without_faults(
    dataset: str, faulty: FaultyS3, running_s3: S3Server, tmp_path: Path
) -> None:
    weights, points = result(dataset, tmp_path / "faultless", running_s3)
    faulty.faults = replace(FAULTS)
    faulty_weights, faulty_points = result(dataset, tmp_path / "faulty", faulty)
    assert {name for name in ("slow_down", "reset", "truncated") if faulty.counts[name]} == {
        "slow_down",
        "reset",
        "truncated",
    }, faulty.counts
    assert weights.keys() == faulty_weights.keys()
    assert all(torch.equal(weights[name], faulty_weights[name]) for name in weights)
    assert points == faulty_points


def decoded(members: dict[str, bytes]) -> bytes:
    """Decode a pair with Pillow and numpy: the bytes of its target and input."""
    arrays = (numpy.asarray(Image.open(io.BytesIO(members[name]))) for name in "ba")
    floats = (array.astype(numpy.float32) / numpy.float32(127.5) - 1 for array in arrays)
    return b"".join(each.transpose(2, 0, 1).tobytes() for each in floats)


def samples_of_an_epoch(job: Job) -> list[tuple[int, bytes]]:
    stream = ShardStream(job, 0, 1)
    batches, found = stream.training(0), list[tuple[int, bytes]]()
    while len(found) < COUNT:
        batch = next(batches)
        assert batch.condition is not None
        for position, image, given in zip(
            batch.positions.tolist(), batch.images, batch.condition, strict=True
        ):
            found.append((position, image.numpy().tobytes() + given.numpy().tobytes()))
    batches.close()
    return found[:COUNT]


def test_an_epoch_with_faults_has_exactly_the_bytes_of_the_dataset(
    dataset: str, faulty: FaultyS3, running_s3: S3Server
) -> None:
    job = job_from(dataset, COUNT)
    data = job.data.model_copy(update={"augment": AugmentSection()})
    model = job.model.model_copy(update={"image_size": SIZE})
    plain = job.model_copy(update={"data": data, "model": model})
    os.environ.update(faulty.environment)
    faulty.faults = replace(FAULTS)
    found = samples_of_an_epoch(plain)
    assert faulty.counts["slow_down"] > 0
    assert [position for position, _ in found] == list(range(COUNT))
    wanted = [decoded(pair(number)) for number in range(COUNT)]
    assert sorted(content for _, content in found) == sorted(wanted)


def test_an_outage_of_the_storage_only_pauses_training(dataset: str, faulty: FaultyS3) -> None:
    os.environ.update(faulty.environment)
    job = job_from(dataset, COUNT)
    batches = ShardStream(job, 0, 1).training(0)
    next(batches)
    faulty.outage(8)
    start = time.monotonic()
    for _ in range(COUNT // 4):
        next(batches)
    batches.close()
    assert time.monotonic() - start > 4
