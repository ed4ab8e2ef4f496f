"""Small packed sets of known images, and what a stream gives of them."""

import io
import threading
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy
import pytest
import torch
from PIL import Image

from orchestrator.config.data_section import DataSection
from orchestrator.config.job import Job, TrainSection
from orchestrator.data.format.decoding import Pixels
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading import stream
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.transforms import to_float
from orchestrator.models.base import Batch, Input, ModelConfig
from orchestrator.storage.local import FolderStorage

Value = TypeVar("Value")
Images = dict[int, tuple[torch.Tensor, torch.Tensor | None]]
"""Image and condition of each position of some batches."""

SIZE = 8
NUM_TRAIN = 53
NUM_SINGLE = 400
AUGMENT: dict[str, Any] = {"augment": {"resize": 10, "crop": 8, "flip": True}}


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


def pixels(number: int, channels: int = 3, size: int = SIZE) -> Pixels:
    shape = (size, size, 3) if channels == 3 else (size, size)
    return numpy.random.default_rng(number).integers(0, 256, shape, numpy.uint8)


def png(array: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(array: Pixels) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def write_set(uri: str, count: int, first: int = 0, fields: tuple[str, ...] = ("a", "b")) -> str:
    writer = ShardWriter(uri, fields, image_size=SIZE, channels=3, shard_bytes=20_000)
    for n in range(first, first + count):
        writer.add(f"s{n}", {f: png(pixels(1000 * k + n)) for k, f in enumerate(fields)})
    writer.finish()
    return uri


def write_pairs(root: Path) -> str:
    """Write NUM_TRAIN pairs for training and 11 for validation."""
    write_set(str(root / "validation"), 11, first=500)
    return write_set(str(root / "train"), NUM_TRAIN).removesuffix("/train")


def write_singles(root: Path) -> str:
    """Write NUM_SINGLE single images in about 10 shards; sample n shows ``pixels(n)``."""
    writer = ShardWriter(
        str(root / "train"), ("image",), image_size=SIZE, channels=3, shard_bytes=40_000
    )
    for n in range(NUM_SINGLE):
        writer.add(f"s{n}", {"image": png(pixels(n))})
    writer.finish()
    return str(root)


class CountingStorage(FolderStorage):
    """A folder that records which ranges of shards are read, and can hold reads back."""

    ranges: list[tuple[str, int, int]]
    gate: threading.Event

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> "type[CountingStorage]":
        """Make streams read through this class, with cleared records."""
        cls.ranges, cls.gate = [], threading.Event()
        cls.gate.set()
        monkeypatch.setattr(stream, "open_storage", lambda uri: cls(Path(uri)))
        return cls

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((key, start, length))
        self.gate.wait(20)
        return super().get_range(key, start, length)


def job_for(
    root: str,
    takes: tuple[Input, ...] = (),
    image_size: int = SIZE,
    classes: int = 0,
    **data: Any,
) -> Job:
    section: dict[str, object] = {"validation": f"{root}/validation", "threads": 3, **data}
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


def by_position(batches: list[Batch]) -> Images:
    return {
        int(position): (batch.images[k], None if batch.condition is None else batch.condition[k])
        for batch in batches
        for k, position in enumerate(batch.positions)
    }


def not_none(value: Value | None) -> Value:
    assert value is not None
    return value


def assert_same_images(one: Images, two: Images) -> None:
    assert one.keys() == two.keys()
    for position, (image, condition) in one.items():
        other_image, other_condition = two[position]
        assert torch.equal(image, other_image)
        assert torch.equal(not_none(condition), not_none(other_condition))


def set_of(root: str) -> ShardSet:
    """Open the set of ``write_singles``."""
    return open_set(f"{root}/train")


def job_of(root: str, **data: Any) -> Job:
    """Describe a job on the set of ``write_singles``, with four shuffle streams."""
    return job_for(root, validation=None, **{"shuffle_streams": 4, **data})


def images(number: int) -> torch.Tensor:
    """Image ``number`` of ``write_singles``, as the stream gives it."""
    return to_float(tensor(pixels(number)))
