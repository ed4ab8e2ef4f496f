"""Decode, augment and binarize one sample.

A corrupt sample is quarantined: it is reported, and replaced by its neighbour in the shard, so that
the order and the shapes of batches do not depend on it, with any number of workers.
"""

import logging
import threading
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.config.job import AugmentSection, Job
from orchestrator.data.format.decoding import Buffer, Pixels
from orchestrator.data.format.shard_index import CAPTION, LABEL, ShardSet
from orchestrator.data.loading.sampler import SampleLocation
from orchestrator.data.loading.transforms import augment, binarize, resize
from orchestrator.data.loading.window_reader import EncodedSample
from orchestrator.errors import CorruptSample, DataError
from orchestrator.seeding import seed_of

MAX_NEIGHBOURS = 20
"""Samples after a corrupt one that are tried as its replacement."""

logger = logging.getLogger(__name__)


class DecodedSample(NamedTuple):
    """One sample as the model gets it."""

    images: dict[str, Pixels]
    """By field: uint8 (S, S, C), S the model's image_size."""
    label: int | None
    caption: str | None


@dataclass
class Quarantine:
    """Corrupt samples that this worker has read. Safe to share between threads."""

    max_samples: float
    """More than this many corrupt samples end the training."""
    reasons: dict[tuple[str, int, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, uri: str, location: SampleLocation, reason: str) -> None:
        """Record and log a corrupt sample, once. Raises DataError if there are too many."""
        with self._lock:
            key = (uri, location.shard, location.index)
            if key in self.reasons:
                return
            self.reasons[key] = reason
            count = len(self.reasons)
        logger.warning("corrupt sample replaced by its neighbour: %s", reason)
        if count > self.max_samples:
            raise DataError(
                f"corrupt samples on this worker: {count}, but data.max_corrupt_fraction allows "
                f"{int(self.max_samples)}; the last one: {reason}. See `orchestrator data check "
                f"{uri}`"
            )


class SampleLoader:
    """Loads samples of a job's sets. Safe to share between threads."""

    def __init__(self, job: Job, quarantine: Quarantine) -> None:
        self._job, self._quarantine = job, quarantine
        self._augments = job.data.augment != AugmentSection()

    def load(
        self,
        packed: ShardSet,
        encoded: EncodedSample,
        position: int | None,
        seed_key: str = "augment",
    ) -> DecodedSample:
        """Decode and augment ``encoded``, or its neighbour if it is corrupt.

        Args:
            position: position in the global order, which seeds the augmentation; None for
                validation samples and examples, which are not augmented.
            seed_key: name of the augmentation's random stream.

        Raises:
            DataError: too many samples are corrupt, or a shard is missing.
        """
        location = encoded.location
        try:
            if zlib.crc32(encoded.data) == encoded.crc32:
                return self._decode(packed, location, encoded.data, position, seed_key)
            return self._read_again(packed, location, position, seed_key)
        except CorruptSample as error:
            self._quarantine.add(packed.uri, location, str(error))
        for step in range(1, MAX_NEIGHBOURS + 1):
            size = packed.index.shards[location.shard].num_samples
            neighbour = SampleLocation(location.shard, (location.index + step) % size)
            try:
                return self._read_again(packed, neighbour, position, seed_key)
            except CorruptSample as error:
                self._quarantine.add(packed.uri, neighbour, str(error))
        raise DataError(
            f"{packed.uri}, shard {location.shard}: sample {location.index} and the "
            f"{MAX_NEIGHBOURS} after it are all corrupt; see `orchestrator data check "
            f"{packed.uri}`"
        )

    def _read_again(
        self, packed: ShardSet, location: SampleLocation, position: int | None, seed_key: str
    ) -> DecodedSample:
        data = packed.read_bytes(location.shard, location.index)
        return self._decode(packed, location, data, position, seed_key)

    def _decode(
        self,
        packed: ShardSet,
        location: SampleLocation,
        data: Buffer,
        position: int | None,
        seed_key: str,
    ) -> DecodedSample:
        where = packed.describe(location.shard, location.index)
        members = packed.split_members(data, where)
        images = {
            name: packed.decode_image(members[name], f"{where}, {name}") for name in packed.fields
        }
        return DecodedSample(
            self._transform(images, location, position, seed_key),
            packed.parse_label(members[LABEL], where) if LABEL in members else None,
            packed.parse_caption(members[CAPTION], where) if CAPTION in members else None,
        )

    def _transform(
        self,
        images: dict[str, Pixels],
        location: SampleLocation,
        position: int | None,
        seed_key: str,
    ) -> dict[str, Pixels]:
        """Resize or augment, and binarize: uint8 (S, S, C) by field."""
        job, size = self._job, self._job.model.image_size
        if position is None:
            images = {name: resize(image, size) for name, image in images.items()}
        elif self._augments:
            key = seed_of(seed_key, job.train.seed, position)
            images = augment(images, job.data.augment, size, key)
        if job.data.binarize is None:
            return images
        # Changing the string of the keys would change the images of every run.
        if position is not None and job.data.binarize == "dynamic":
            key = seed_of("binarise", job.train.seed, position)
        else:  # once per sample, so that validation images never change
            key = seed_of("binarise", location.shard, location.index)
        return {name: binarize(image, key) for name, image in images.items()}
