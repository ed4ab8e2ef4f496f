"""Write samples to DEST/train or DEST/validation; shared by `data pack` and `data fetch`."""

import hashlib
from dataclasses import dataclass, field

from orchestrator.data.format.images import Channels
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import Index
from orchestrator.data.format.writer import SHARD_BYTES, ShardWriter
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import DataError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
"""Words in the names of files and folders, in lower case, and the split that they mean."""
VALIDATION_SHARE = 0.1
"""Default fraction of the samples to hold out."""


@dataclass(frozen=True)
class PackSummary:
    """Result of packing."""

    train_uri: str
    validation_uri: str
    train: Index
    validation: Index | None
    """None if no sample was held out: the validation set does not exist then."""

    @property
    def num_train(self) -> int:
        """Number of training samples."""
        return self.train.num_samples

    @property
    def num_validation(self) -> int:
        """Number of validation samples."""
        return self.validation.num_samples if self.validation else 0


@dataclass(frozen=True)
class PackedSample:
    """One sample, ready to be written."""

    key: str
    """Unique name within the set, without dots and slashes."""
    images: dict[str, bytes]
    """Encoded images by field."""
    for_validation: bool
    image_size: int
    channels: Channels = 3
    label: int | None = None
    """Class number, in a set with classes."""
    caption: str | None = None
    ending: str = "png"
    """File ending of the images, by their encoding."""


@dataclass
class SplitWriter:
    """Write samples to DEST/train or DEST/validation, within write_once.reserve_destination."""

    dest_uri: str
    shard_bytes: int = SHARD_BYTES
    classes: tuple[str, ...] = ()
    """Class names by number, if the samples have labels."""
    multiple_captions: bool = False
    """Whether a caption is several, one per line."""
    preparation: Preparation = field(default_factory=Preparation)
    derived_input: DerivedInput | None = None
    _writers: dict[str, ShardWriter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dest_uri = self.dest_uri.rstrip("/")

    def resume(self, like: PackedSample) -> dict[bool, set[str]]:
        """Keep the shards that an interrupted packing of samples ``like`` this one finished.

        Call it before ``add``, then add the remaining samples in their original order. Returns the
        keys of the samples that are kept, by whether they are held out.
        """
        kept: dict[bool, set[str]] = {}
        for held_out in (False, True):
            writer = self._new_writer(held_out, like)
            kept[held_out] = writer.resume()
            if kept[held_out]:
                self._writers[_part(held_out)] = writer
        return kept

    def add(self, sample: PackedSample) -> None:
        """Append ``sample`` to its set."""
        part = _part(sample.for_validation)
        if part not in self._writers:
            self._writers[part] = self._new_writer(sample.for_validation, sample)
        self._writers[part].add(sample.key, sample.images, sample.label, sample.caption)

    def _new_writer(self, held_out: bool, like: PackedSample) -> ShardWriter:
        return ShardWriter(
            f"{self.dest_uri}/{_part(held_out)}",
            tuple(like.images),
            image_size=like.image_size,
            channels=like.channels,
            extension=like.ending,
            classes=self.classes,
            captions=like.caption is not None,
            multiple_captions=self.multiple_captions,
            preparation=self.preparation,
            derived_input=self.derived_input,
            shard_bytes=self.shard_bytes,
            new=False,
        )

    def finish(self) -> PackSummary:
        """Write the indexes, the training set's last: if it exists, everything does."""
        if "train" not in self._writers:
            raise DataError(
                f"all images were held out for validation, none is left for {self.dest_uri}/train; "
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


def is_held_out(content: bytes, share: float) -> bool:
    """Whether to hold a sample out, by a hash of its content, so that duplicates stay together."""
    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return number < share * 2**64
