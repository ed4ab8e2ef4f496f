"""Read the images that a model is compared with, as it was trained on them."""

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy
import torch

from orchestrator.data.format.decoding import Pixels
from orchestrator.data.format.shard_index import DecodedSample, ShardSet
from orchestrator.data.loading.sampler import permutation
from orchestrator.data.loading.transforms import binarize, to_float
from orchestrator.data.loading.window_reader import EncodedSample, read_samples
from orchestrator.models.base import Batch
from orchestrator.models.parts.text import caption_bytes
from orchestrator.seeding import seed_of

BATCH = 64
"""Images that are read at a time."""


@dataclass(frozen=True)
class ImageReading:
    """How a job reads its sets, which a model must be evaluated with too."""

    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """In sets of pairs: which image is the input."""
    binarize: bool = False
    """Whether each value is drawn as black or white, once for each image."""

    def note(self) -> dict[str, Any]:
        """Return what is not the default, as notes of a registered model."""
        return {name: value for name, value in asdict(self).items() if value != _DEFAULT[name]}

    @classmethod
    def of_notes(cls, notes: dict[str, Any]) -> "ImageReading":
        """Read what ``note`` returned, from all notes of a registered model."""
        direction: Literal["AtoB", "BtoA"] = "BtoA" if notes.get("direction") == "BtoA" else "AtoB"
        return cls(direction, notes.get("binarize") is True)


_DEFAULT: dict[str, Any] = {"direction": "AtoB", "binarize": False}


@dataclass(frozen=True)
class ReferenceSet:
    """Some images of a packed set, the same in every evaluation.

    The samples are the first ``count`` of a fixed random order, so that a set that is sorted by
    class gives all classes, and fewer images are a part of more.
    """

    packed: ShardSet
    count: int
    reading: ImageReading = field(default_factory=ImageReading)

    def __post_init__(self) -> None:
        assert 0 < self.count <= self.packed.num_samples

    def batches(self, size: int = BATCH) -> Iterator[Batch]:
        """Yield the images in batches, in the order of the set; positions are numbers in the set.

        Raises:
            CorruptSample: a sample is not what was packed.
            DataError: a shard is missing.
        """
        order = permutation(self.packed.num_samples, seed_of("evaluation"))
        chosen = numpy.sort(order[: self.count])
        for start in range(0, self.count, size):
            numbers = chosen[start : start + size]
            shards, indices = self.packed.locate(numbers)
            samples = [self._decode(s) for s in read_samples(self.packed, shards, indices)]
            yield self._batch(samples, numbers.tolist())

    def _decode(self, encoded: EncodedSample) -> DecodedSample:
        packed, (shard, index) = self.packed, (encoded.location.shard, encoded.location.index)
        where = packed.describe(shard, index)
        is_intact = zlib.crc32(encoded.data) == encoded.crc32
        data = encoded.data if is_intact else packed.read_bytes(shard, index)
        sample = packed.decode(packed.split_members(data, where), where)
        if not self.reading.binarize:
            return sample
        key = seed_of("binarise", shard, index)  # as validation images of a training
        return sample._replace(images={n: binarize(i, key) for n, i in sample.images.items()})

    def _batch(self, samples: list[DecodedSample], numbers: list[int]) -> Batch:
        target, given = "image", None
        if self.packed.fields != ("image",):
            target, given = ("b", "a") if self.reading.direction == "AtoB" else ("a", "b")
        labels = [sample.label for sample in samples if sample.label is not None]
        captions = [
            caption_bytes(sample.caption.split("\n")[0] if self._many else sample.caption)
            for sample in samples
            if sample.caption is not None
        ]
        return Batch(
            images=_stack([sample.images[target] for sample in samples]),
            positions=torch.tensor(numbers, dtype=torch.int64),
            condition=_stack([sample.images[given] for sample in samples]) if given else None,
            labels=torch.tensor(labels, dtype=torch.int64) if labels else None,
            captions=torch.stack(captions) if captions else None,
        )

    @property
    def _many(self) -> bool:
        """Whether each line of a caption is one, of which the first is taken."""
        return self.packed.index.multiple_captions


def _stack(images: list[Pixels]) -> torch.Tensor:
    """Return float32 (B, C, H, W) in [-1, 1] of uint8 (H, W, C)."""
    pixels = torch.from_numpy(numpy.stack(images))
    if pixels.dim() == 3:
        pixels = pixels[..., None]
    return to_float(pixels.permute(0, 3, 1, 2).contiguous())
