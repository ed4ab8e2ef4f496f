"""Samples on their way into DEST/train or DEST/validation: what packing and fetching share."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.data.format.images import Channels
from orchestrator.data.format.shard_index import Index, Progress
from orchestrator.data.format.writer import SHARD_BYTES, ShardWriter
from orchestrator.data.prepare.process_map import ParallelMap, map_in_processes
from orchestrator.errors import DataError

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class FetchRequest:
    """What someone wants of a named data set."""

    dest_uri: str
    """Where DEST/train and DEST/validation go: a folder or s3://bucket/prefix."""
    size: int
    """Height and width of the packed images, in pixels."""
    count: int | None = None
    """How many samples to draw, for drawn sets; None is the set's default."""
    source: str | None = None
    """Folder, archive or URL of the original files, for sets that no package has."""
    progress: Progress | None = None
    parallel_map: ParallelMap = map_in_processes
    """What converts many images."""


@dataclass(frozen=True)
class PackSummary:
    """What was packed, and where."""

    train_uri: str
    validation_uri: str
    train: Index
    validation: Index | None
    """None if no sample fell to it: there is no such set then."""

    @property
    def num_train(self) -> int:
        """Samples to train on."""
        return self.train.num_samples

    @property
    def num_validation(self) -> int:
        """Samples to validate on."""
        return self.validation.num_samples if self.validation else 0


@dataclass(frozen=True)
class Sample:
    """One sample, ready to be written."""

    key: str
    """Names the sample within its set: no dots or slashes."""
    images: dict[str, bytes]
    """Encoded, by field."""
    for_validation: bool
    image_size: int
    channels: Channels = 3
    label: int | None = None
    """Number of its class, in a set with classes."""
    caption: str | None = None
    ending: str = "png"
    """Of the images' files, which says how they are encoded."""


@dataclass
class SplitWriter:
    """Writes samples to DEST/train or DEST/validation, which once.reserved keeps for them."""

    dest_uri: str
    shard_bytes: int = SHARD_BYTES
    classes: tuple[str, ...] = ()
    """Names of the classes by number, if the samples have labels."""
    _writers: dict[str, ShardWriter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dest_uri = self.dest_uri.rstrip("/")

    def resume(self, like: Sample) -> dict[bool, set[str]]:
        """Keep the shards that an interrupted packing of the same samples finished.

        Gives the keys of their samples by whether they are held out. To be called first; the
        other samples are then to be added in the order of the first time.

        Args:
            like: one of the samples, to tell what kind they are.
        """
        kept: dict[bool, set[str]] = {}
        for held_out in (False, True):
            writer = self._new_writer(held_out, like)
            kept[held_out] = writer.resume()
            if kept[held_out]:
                self._writers[_part(held_out)] = writer
        return kept

    def add(self, sample: Sample) -> None:
        """Append ``sample`` to its set."""
        part = _part(sample.for_validation)
        if part not in self._writers:
            self._writers[part] = self._new_writer(sample.for_validation, sample)
        self._writers[part].add(sample.key, sample.images, sample.label, sample.caption)

    def _new_writer(self, held_out: bool, like: Sample) -> ShardWriter:
        return ShardWriter(
            f"{self.dest_uri}/{_part(held_out)}",
            tuple(like.images),
            image_size=like.image_size,
            channels=like.channels,
            ending=like.ending,
            classes=self.classes,
            captions=like.caption is not None,
            shard_bytes=self.shard_bytes,
            new=False,
        )

    def add_all(
        self, samples: Iterable[Sample | None], total: int, progress: Progress | None
    ) -> None:
        """Append those of ``total`` samples that are not None, and say how many are done."""
        for done, sample in enumerate(samples, start=1):
            if sample is not None:
                self.add(sample)
            if progress is not None:
                progress(done, total)

    def finish(self) -> PackSummary:
        """Write the indexes, that of the training set last: where it is, all is there."""
        if "train" not in self._writers:
            raise DataError(
                f"all images fell to the validation set, none to {self.dest_uri}/train; "
                "give more images or a smaller validation share"
            )
        held_out = self._writers.get("validation")
        return PackSummary(
            train_uri=f"{self.dest_uri}/train",
            validation_uri=f"{self.dest_uri}/validation",
            validation=held_out.finish() if held_out else None,
            train=self._writers["train"].finish(),
        )


def _part(held_out: bool) -> str:
    return "validation" if held_out else "train"


def falls_to_validation(content: bytes, share: float) -> bool:
    """Whether a sample is held out: decided by its content, so that duplicates stay together."""
    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return number < share * 2**64
