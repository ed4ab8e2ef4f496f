"""Samples on their way into DEST/train or DEST/validation: what packing and fetching share."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.data.images import Channels
from orchestrator.data.shards import Index, Progress
from orchestrator.data.writer import SHARD_BYTES, ShardWriter, refuse_existing
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
    """PNG by field."""
    for_validation: bool
    image_size: int
    channels: Channels = 3
    label: int | None = None
    """Number of its class, in a set with classes."""
    caption: str | None = None


@dataclass
class SplitWriter:
    """Writes samples to DEST/train or DEST/validation."""

    dest_uri: str
    shard_bytes: int = SHARD_BYTES
    classes: tuple[str, ...] = ()
    """Names of the classes by number, if the samples have labels."""
    _writers: dict[str, ShardWriter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dest_uri = self.dest_uri.rstrip("/")
        for part in ("train", "validation"):
            refuse_existing(
                f"{self.dest_uri}/{part}",
                remove=f"{self.dest_uri}/train and {self.dest_uri}/validation",
            )

    def add(self, sample: Sample) -> None:
        """Append ``sample`` to its set."""
        part = "validation" if sample.for_validation else "train"
        if part not in self._writers:
            self._writers[part] = ShardWriter(
                f"{self.dest_uri}/{part}",
                tuple(sample.images),
                image_size=sample.image_size,
                channels=sample.channels,
                classes=self.classes,
                captions=sample.caption is not None,
                shard_bytes=self.shard_bytes,
            )
        self._writers[part].add(sample.key, sample.images, sample.label, sample.caption)

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


def falls_to_validation(content: bytes, share: float) -> bool:
    """Whether a sample is held out: decided by its content, so that duplicates stay together."""
    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return number < share * 2**64
