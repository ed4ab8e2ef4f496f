"""The data section of a job file."""

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import ByteSize, Discriminator, Field, PlainSerializer, Tag, WithJsonSchema

from orchestrator.bounds import LARGEST_SIZE, Count, ImageSide, Seconds, Text
from orchestrator.config.section import Section
from orchestrator.derived_input_kinds import DerivedInput

MAX_SETS = 32
"""Training sets of a job."""


def format_size(num_bytes: int) -> str | int:
    """Return a size in the largest unit that divides it, such as 512MiB."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes and num_bytes % (1 << shift) == 0:
            return f"{num_bytes >> shift}{unit}"
    return num_bytes


Size = Annotated[
    ByteSize,
    Ge(1),
    Le(LARGEST_SIZE),
    PlainSerializer(format_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\s*(\d*\.?\d+)\s*(\w+)?", "maxLength": 40},
                {"type": "integer", "minimum": 1, "maximum": LARGEST_SIZE},
            ]
        }
    ),
]
"""A number of bytes, with or without a unit: 512MiB, 2GB."""


class AugmentSection(Section):
    """Random augmentation of training images. Both images of a pair are changed alike."""

    resize: ImageSide | None = None
    """Resize to this height and width in pixels before cropping (bicubic, antialiased)."""
    crop: ImageSide | None = None
    """Side in pixels of a random square crop; must equal the model's image_size."""
    flip: bool = False
    """Flip horizontally with probability 1/2."""


class SourceSection(Section):
    """A known dataset to download or draw and to pack, as `orchestrator data fetch` does."""

    name: Literal[
        "openmoji",
        "openmoji_groups",
        "mnist",
        "fashion",
        "digits",
        "faces",
        "drawn_attention",
        "drawn_depths",
        "drawn_facades",
        "drawn_maps",
        "drawn_nights",
        "drawn_seasons",
        "drawn_views",
    ]
    """Name of the dataset; see `orchestrator data fetch --help`."""
    size: ImageSide
    """Height and width of the packed images, in pixels."""
    count: Count | None = None
    """Number of samples to draw of a drawn set; by default 20,000 faces or 2,000 pairs."""
    derive_input: DerivedInput | None = None
    """Make pairs of single images, with an input made from each; see `orchestrator data fetch
    --help`."""


class CacheSection(Section):
    """Cache of shards on a local disk of each machine, shared by all its workers and jobs."""

    folder: Text
    """Folder on a fast local disk; created if it does not exist."""
    limit: Size
    """Maximum size of the cache; the least recently used shards are evicted first."""


class WeightedSet(Section):
    """One of several training sets."""

    path: Text
    """Packed set: a folder, or s3://, gs:// or az://bucket/prefix."""
    weight: float = Field(ge=1e-6, le=1e6)
    """Share of the images that come from this set, relative to the weights of the others."""


def _tag_of_train(value: object) -> str:
    return "sets" if isinstance(value, list) else "one"


class DataSection(Section):
    """The datasets, and how images are read, shuffled, augmented and decoded."""

    train: Annotated[
        Annotated[Text, Tag("one")]
        | Annotated[list[WeightedSet], Field(min_length=2, max_length=MAX_SETS), Tag("sets")],
        Discriminator(_tag_of_train),
    ]
    """Packed training set: a folder, or s3://, gs:// or az://bucket/prefix. Or 2 to 32 sets, mixed
    by weight: [{path: photos/train, weight: 3}, {path: drawings/train, weight: 1}]. A set that has
    been seen once starts again, in another order."""
    validation: Text | None = None
    """Packed validation set: a folder, or s3://, gs:// or az://bucket/prefix."""
    source: SourceSection | None = None
    """Dataset to fetch and pack if `train` is one local folder that does not exist yet."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """For paired datasets, which image is the input and which is the target."""
    augment: AugmentSection = AugmentSection()
    """Random augmentation of training images; none by default."""
    binarize: Literal["dynamic", "fixed"] | None = None
    """Sample every value as black or white, with its grey level as the probability of white.
    dynamic: sample training images again in every epoch; fixed: sample each image once. Validation
    images are always sampled once."""
    threads: int = Field(default=2, gt=0, le=1_024)
    """Decoding threads per worker. Images of up to 8,192 values, such as 64 px grey, are decoded by
    a single thread, which is faster."""
    shuffle_streams: Count = 96
    """Number of streams through the training set that each batch is drawn from; halved for small
    sets until each stream has a full window. If the number of workers divides it, each worker reads
    only its own parts of the set. The order of samples does not depend on the number of workers."""
    read_size: Size = ByteSize(4 << 20)
    """Size of a window: neighbouring samples of a stream that are read with one request and
    shuffled."""
    prefetch_memory: Size = ByteSize(512 << 20)
    """Memory per worker for images that are read ahead, of all training sets together; the windows
    of its shuffle streams may take at most three quarters of it."""
    cache: CacheSection | None = None
    """Cache shards from an object store on a local disk; off by default."""
    retry_timeout_s: Seconds = 300
    """How long training waits for an unreachable object store, in seconds; then it ends with exit
    code 4."""
    max_corrupt_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fraction of the samples that may be corrupt. Each corrupt sample is reported and replaced by
    another one; above this fraction, training ends with exit code 4."""

    @property
    def training_sets(self) -> list[WeightedSet]:
        """The training sets; one has the weight 1."""
        if isinstance(self.train, str):
            return [WeightedSet(path=self.train, weight=1)]
        return self.train
