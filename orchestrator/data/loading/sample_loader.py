"""One sample from its bytes to the pixels that the model is to see.

A sample that is damaged is quarantined: told of, and replaced by its neighbour in the shard, so
that order and batch shape hold on any number of workers.
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
from orchestrator.data.loading.transforms import augment, binarized, resized
from orchestrator.data.loading.window_reader import EncodedSample
from orchestrator.errors import CorruptSample, DataError
from orchestrator.seeding import seed_of

NEIGHBOURS = 20
"""Samples after a damaged one that are tried in its place."""

logger = logging.getLogger(__name__)


class DecodedSample(NamedTuple):
    """One sample, loaded."""

    images: dict[str, Pixels]
    """By field: uint8 (S, S, C), S the model's image_size."""
    label: int | None
    caption: str | None


@dataclass
class Quarantine:
    """The damaged samples that this worker has met. Safe to share between threads."""

    most: float
    """One more than this ends the training."""
    reasons: dict[tuple[str, int, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, uri: str, place: SampleLocation, reason: str) -> None:
        """Remember and tell of a sample, once. Raises DataError if there are too many."""
        with self._lock:
            key = (uri, place.shard, place.index)
            if key in self.reasons:
                return
            self.reasons[key] = reason
            count = len(self.reasons)
        logger.warning("left out and replaced by its neighbour: %s", reason)
        if count > self.most:
            raise DataError(
                f"{count} damaged on this worker, where data.max_corrupt_fraction allows "
                f"{int(self.most)}; the last: "
                f"{reason}. See `orchestrator data check {uri}`"
            )


class SampleLoader:
    """Loads the samples of a job's sets; safe to share between threads."""

    def __init__(self, job: Job, quarantine: Quarantine) -> None:
        self._job, self._quarantine = job, quarantine
        self._augments = job.data.augment != AugmentSection()

    def load(
        self, packed: ShardSet, encoded: EncodedSample, position: int | None, draw: str = "augment"
    ) -> DecodedSample:
        """The sample that was read as ``encoded``, or its neighbour if it is damaged.

        Args:
            position: its number in the training, which keys what is drawn; None for samples
                that are shown as they are.
            draw: what the augmentation is drawn for.

        Raises DataError if there are too many damaged ones, or a shard is missing.
        """
        place = encoded.place
        try:
            if zlib.crc32(encoded.data) == encoded.crc32:
                return self._loaded(packed, place, encoded.data, position, draw)
            return self._reloaded(packed, place, position, draw)
        except CorruptSample as error:
            self._quarantine.add(packed.uri, place, str(error))
        for step in range(1, NEIGHBOURS + 1):
            size = packed.index.shards[place.shard].num_samples
            near = SampleLocation(place.shard, (place.index + step) % size)
            try:
                return self._reloaded(packed, near, position, draw)
            except CorruptSample as error:
                self._quarantine.add(packed.uri, near, str(error))
        raise DataError(
            f"{packed.uri}, shard {place.shard}: sample {place.index} and the {NEIGHBOURS} after "
            f"it are all damaged; see `orchestrator data check {packed.uri}`"
        )

    def _reloaded(
        self, packed: ShardSet, place: SampleLocation, position: int | None, draw: str
    ) -> DecodedSample:
        data = packed.read_bytes(place.shard, place.index)
        return self._loaded(packed, place, data, position, draw)

    def _loaded(
        self, packed: ShardSet, place: SampleLocation, data: Buffer, position: int | None, draw: str
    ) -> DecodedSample:
        where = packed.where(place.shard, place.index)
        members = packed.split(data, where)
        images = {name: packed.decode(members[name], f"{where}, {name}") for name in packed.fields}
        return DecodedSample(
            self._as_seen(images, place, position, draw),
            packed.label(members[LABEL], where) if LABEL in members else None,
            packed.caption(members[CAPTION], where) if CAPTION in members else None,
        )

    def _as_seen(
        self, images: dict[str, Pixels], place: SampleLocation, position: int | None, draw: str
    ) -> dict[str, Pixels]:
        """The images of a sample as the model is to see them: uint8 (S, S, C)."""
        job, size = self._job, self._job.model.image_size
        if position is None:
            images = {name: resized(image, size) for name, image in images.items()}
        elif self._augments:
            key = seed_of(draw, job.train.seed, position)
            images = augment(images, job.data.augment, size, key)
        if job.data.binarize is None:
            return images
        if position is not None and job.data.binarize == "dynamic":
            key = seed_of("binarise", job.train.seed, position)
        else:  # one draw for all time: also the held-out images stay what they are
            key = seed_of("binarise", place.shard, place.index)
        return {name: binarized(image, key) for name, image in images.items()}
