"""Batches for one worker: what order.py says, read from the shards and decoded ahead in threads."""

import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from models.base import Batch
from models.parts.text import caption_bytes
from orchestrator.data.ahead import in_order
from orchestrator.data.order import Order, Place
from orchestrator.data.shards import CAPTION, LABEL, ShardSet, open_set
from orchestrator.data.transforms import augment, binarised, resized, to_float
from orchestrator.errors import DataError
from orchestrator.job import Job
from orchestrator.randomness import seed_of

BATCHES_AHEAD = 3
"""Batches that are read and decoded while one is trained on; each costs its uint8 images."""


@dataclass(frozen=True)
class _Wanted:
    """One sample to load."""

    packed: ShardSet
    place: Place
    position: int
    """Its number in the global order; in a validation set, its index."""
    augmented: bool


@dataclass(frozen=True)
class _Sample:
    """One sample, loaded: uint8 (C, S, S) images."""

    position: int
    image: Tensor
    condition: Tensor | None
    label: int | None
    caption: str | None


class ShardStream:
    """The training and validation images of a job, as one of ``world_size`` workers sees them.

    All workers together see each sample of each global batch once, whatever their number, with
    the same augmentation: both depend on the sample's position in the global order alone.
    """

    def __init__(self, job: Job, rank: int, world_size: int, pin_memory: bool = False) -> None:
        """Open the job's sets; read nothing but their indexes.

        Raises:
            DataError: a set is missing, damaged, or does not fit the model or the batch.
        """
        assert job.train.batch_size % world_size == 0, "the job file's rules say so"
        self._job, self._rank, self._world_size = job, rank, world_size
        self._pin_memory = pin_memory
        self._train = open_set(job.data.train)
        self._validation = open_set(job.data.validation) if job.data.validation else None
        for packed in (self._train, self._validation):
            if packed is not None:
                _check_kind(packed, job)
        _check_training_set(self._train, job)
        self._order = Order(self._train.shard_sizes, seed_of("order", job.train.seed))

    @property
    def num_samples(self) -> int:
        """Samples of the training set: the length of an epoch."""
        return self._train.num_samples

    @property
    def num_validation(self) -> int:
        """Samples of the validation set; 0 if there is none."""
        return self._validation.num_samples if self._validation else 0

    def training(self, start: int) -> Generator[Batch, None, None]:
        """This worker's share of the batches from image ``start`` on, endlessly.

        A share is train.batch_size / world_size images. Close the iterator to stop its threads.
        Raises DataError in the turn of a damaged sample.
        """
        first = start + self._rank
        wanted = (
            _Wanted(self._train, self._order.at(position), position, augmented=True)
            for position in itertools.count(first, self._world_size)
        )
        return self._batches(wanted)

    def validation(self) -> Iterator[Batch]:
        """This worker's share of the validation set, in its order, not augmented.

        Sample i belongs to rank i % world_size: shares may differ by one image or be empty.
        """
        if self._validation is None:
            return iter(())
        return self._batches(
            _plain(self._validation, range(self._rank, self.num_validation, self._world_size))
        )

    def examples(self, count: int) -> Batch:
        """Images spread evenly over the validation set, or else the training set, not augmented.

        The same on every rank; fewer than ``count`` if the set is smaller.
        """
        packed = self._validation or self._train
        step = max(1, packed.num_samples // count)
        wanted = _plain(packed, range(0, packed.num_samples, step)[:count])
        return self._batch([self._load(each) for each in wanted])

    def _batches(self, wanted: Iterable[_Wanted]) -> Generator[Batch, None, None]:
        share = self._job.train.batch_size // self._world_size
        pool = ThreadPoolExecutor(self._job.data.threads, thread_name_prefix="decode")
        samples = in_order(pool, self._load, wanted, ahead=BATCHES_AHEAD * share)
        try:
            while portion := list(itertools.islice(samples, share)):
                yield self._batch(portion)
        finally:
            samples.close()

    def _batch(self, samples: list[_Sample]) -> Batch:
        conditions = [sample.condition for sample in samples if sample.condition is not None]
        labels = [sample.label for sample in samples if sample.label is not None]
        captions = [caption_bytes(s.caption) for s in samples if s.caption is not None]
        return Batch(
            images=self._floats([sample.image for sample in samples]),
            positions=torch.tensor([sample.position for sample in samples], dtype=torch.int64),
            condition=self._floats(conditions) if conditions else None,
            labels=torch.tensor(labels, dtype=torch.int64) if labels else None,
            captions=torch.stack(captions) if captions else None,
            seed=self._job.train.seed,
        )

    def _floats(self, images: list[Tensor]) -> Tensor:
        # One memory layout whatever the augmentation did: convolutions round by layout.
        floats = to_float(torch.stack(images).contiguous())
        return floats.pin_memory() if self._pin_memory else floats

    def _load(self, wanted: _Wanted) -> _Sample:
        """Runs in the pool's threads; reading and decoding release the GIL."""
        packed, given = wanted.packed, None
        members = packed.read(wanted.place.shard, wanted.place.index)
        images = self._images(wanted, members)
        if packed.fields == ("image",):
            image = images["image"]
        else:
            a, b = ("a", "b") if self._job.data.direction == "AtoB" else ("b", "a")
            given, image = images[a], images[b]
        if "unpaired" in self._job.model.takes and wanted.augmented:
            given = self._load_stranger(wanted)
        where = _where(wanted)
        return _Sample(
            position=wanted.position,
            image=image,
            condition=given,
            label=packed.label(members[LABEL], where) if LABEL in members else None,
            caption=packed.caption(members[CAPTION], where) if CAPTION in members else None,
        )

    def _load_stranger(self, wanted: _Wanted) -> Tensor:
        """An input image that is not the sample's own, drawn from the whole set."""
        seed = self._job.train.seed
        place = self._order.at(seed_of("stranger", seed, wanted.position) % self.num_samples)
        other = _Wanted(wanted.packed, place, wanted.position, augmented=True)
        members = wanted.packed.read(place.shard, place.index)
        images = self._images(other, members, draw="stranger")
        return images["a" if self._job.data.direction == "AtoB" else "b"]

    def _images(
        self, wanted: _Wanted, members: dict[str, bytes], draw: str = "augment"
    ) -> dict[str, Tensor]:
        """The sample's images by field, as the model is to see them: uint8 (C, S, S)."""
        job, packed, size = self._job, wanted.packed, self._job.model.image_size
        images = {name: _decoded(wanted, name, members[name]) for name in packed.fields}
        if wanted.augmented:
            key = seed_of(draw, job.train.seed, wanted.position)
            images = augment(images, job.data.augment, size, key)
        else:
            images = {name: resized(image, size) for name, image in images.items()}
        if job.data.binarise is None:
            return images
        if wanted.augmented and job.data.binarise == "dynamic":
            key = seed_of("binarise", job.train.seed, wanted.position)
        else:  # one draw for all time: also the held-out images stay what they are
            key = seed_of("binarise", wanted.place.shard, wanted.place.index)
        return {name: binarised(image, key) for name, image in images.items()}


def _plain(packed: ShardSet, positions: range) -> Iterator[_Wanted]:
    """Samples by their number in the set, as they are."""
    places = (
        Place(shard, index)
        for shard, size in enumerate(packed.shard_sizes)
        for index in range(size)
    )
    chosen = itertools.islice(places, positions.start, positions.stop, positions.step)
    for position, place in zip(positions, chosen, strict=True):
        yield _Wanted(packed, place, position, augmented=False)


def _decoded(wanted: _Wanted, name: str, data: bytes) -> Tensor:
    """The image in ``data``: uint8 (C, S, S) of the set's size. Raises DataError."""
    # Pillow, though torchvision needs a third less time: its decoders are deprecated.
    pixels = numpy.array(wanted.packed.decode(data, f"{_where(wanted)}, {name}"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _where(wanted: _Wanted) -> str:
    return f"{wanted.packed.uri}, shard {wanted.place.shard}, sample {wanted.place.index}"


def _check_kind(packed: ShardSet, job: Job) -> None:
    """Raise DataError unless the set holds what the model takes."""
    model = job.model
    if packed.channels != model.channels:
        how = "with --grey" if model.channels == 1 else "without --grey"
        raise DataError(
            f"{packed.uri} has images of {packed.channels} channels, but model.channels is "
            f"{model.channels}; change it, or pack the images again {how}"
        )
    if set(packed.fields) not in ({"image"}, {"a", "b"}):
        raise DataError(
            f"{packed.uri} has the fields {', '.join(packed.fields)}; a set has 'image', or "
            "'a' and 'b' for pairs"
        )
    if packed.fields == ("image",) and model.takes & {"pairs", "unpaired"}:
        raise DataError(
            f"{packed.uri} has single images, but model {model.name} translates one image "
            "into another; pack pairs (folders A and B, or --side-by-side files)"
        )
    classes = len(packed.index.classes)
    if "labels" in model.takes and classes != model.num_classes:
        raise DataError(
            f"{packed.uri} has {classes or 'no'} classes, but model {model.name} is set up for "
            f"{model.num_classes}; set model.classes: {classes}, or use another set"
        )
    if "captions" in model.takes and not packed.index.captions:
        raise DataError(
            f"{packed.uri} has no captions, which model {model.name} draws from; "
            "fetch a set that has them, such as faces"
        )


def _check_training_set(packed: ShardSet, job: Job) -> None:
    """Raise DataError unless augmentation gives the model's size and a batch can be filled."""
    size, section = job.model.image_size, job.data.augment
    given = section.resize or packed.image_size
    if given != size and not (section.crop and given > size):
        raise DataError(
            f"{packed.uri} is packed at {packed.image_size} px, but model.image_size is {size}; "
            f"pack it again with --size {size}, or set data.augment.resize: {size}"
        )
    if packed.num_samples < job.train.batch_size:
        raise DataError(
            f"{packed.uri} has {packed.num_samples} samples, less than one batch: "
            f"train.batch_size is {job.train.batch_size}"
        )
