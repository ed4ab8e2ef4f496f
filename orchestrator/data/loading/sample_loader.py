"""Decode, augment and binarize one sample.

A corrupt sample is quarantined: it is reported, and replaced by its neighbour in the shard, so that
the order and the shapes of batches do not depend on it, with any number of workers.
"""

import logging
import shlex
import threading
import zlib
from dataclasses import dataclass, field

from orchestrator.config.data_section import AugmentSection
from orchestrator.config.job import Job
from orchestrator.data.format.decoding import Pixels
from orchestrator.data.format.shard_index import DecodedSample, ShardSet
from orchestrator.data.loading.sampler import SampleLocation
from orchestrator.data.loading.transforms import augment, binarize, resize
from orchestrator.data.loading.window_reader import EncodedSample
from orchestrator.errors import CorruptSample, DataError
from orchestrator.seeding import seed_of

MAX_NEIGHBOURS = 20
"""Samples after a corrupt one that are tried as its replacement."""

logger = logging.getLogger(__name__)


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
                f"{shlex.quote(uri)}`"
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

        ``seed_key`` and the ``position`` in the global order seed the augmentation; None is for
        validation samples and examples, which are not augmented.

        Raises DataError if too many samples are corrupt, or a shard is missing.
        """
        shard, first = encoded.location.shard, encoded.location.index
        for step in range(1 + MAX_NEIGHBOURS):
            index = (first + step) % packed.index.shards[shard].num_samples
            location = SampleLocation(shard, index)
            where = packed.describe(shard, index)
            try:
                is_intact = step == 0 and zlib.crc32(encoded.data) == encoded.crc32
                data = encoded.data if is_intact else packed.read_bytes(shard, index)
                sample = packed.decode(packed.split_members(data, where), where)
            except CorruptSample as error:
                self._quarantine.add(packed.uri, location, str(error))
            else:
                images = self._transform(sample.images, location, position, seed_key)
                caption = self._draw_caption(packed, sample.caption, position)
                return sample._replace(images=images, caption=caption)
        raise DataError(
            f"{packed.uri}, shard {shard}: sample {first} and the {MAX_NEIGHBOURS} after it are "
            f"all corrupt; see `orchestrator data check {shlex.quote(packed.uri)}`"
        )

    def _draw_caption(
        self, packed: ShardSet, caption: str | None, position: int | None
    ) -> str | None:
        """Draw one line of several captions; of a sample that is not augmented, the first."""
        if caption is None or not packed.index.multiple_captions:
            return caption
        lines = caption.split("\n")
        if position is None:
            return lines[0]
        return lines[seed_of("caption", self._job.train.seed, position) % len(lines)]

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
