"""The job file: all that a YAML may say, as pydantic models.

This module needs pydantic alone, so that the trainer can be used where nothing else is
installed; reading files, overrides and error positions are in jobfile/.
"""

import math
from typing import Annotated, Literal

from pydantic import (
    ByteSize,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    Tag,
)

from orchestrator.config.section import Section
from orchestrator.config.sweep import SweepSection
from orchestrator.models.base import ModelConfig


def size_text(num_bytes: int) -> str | int:
    """A size with the largest unit that gives a whole number: 512MiB."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes and num_bytes % (1 << shift) == 0:
            return f"{num_bytes >> shift}{unit}"
    return num_bytes


Size = Annotated[ByteSize, PlainSerializer(size_text)]
"""A number of bytes, or one with a unit: 512MiB, 2GB."""


class AugmentSection(Section):
    """Random changes to training images; both images of a pair get the same ones."""

    resize: PositiveInt | None = None
    """Resize to this height and width in pixels before the crop (bicubic, antialiased)."""
    crop: PositiveInt | None = None
    """Cut a square of this size in pixels at a random place; it must be the model's image_size."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""


class SourceSection(Section):
    """A named data set that can be fetched and packed by `orchestrator data fetch`."""

    name: Literal["openmoji", "openmoji_groups", "mnist", "fashion", "digits", "faces"]
    """Name of the data set: see `orchestrator data fetch --help`."""
    size: PositiveInt
    """Height and width of the packed images, in pixels."""
    count: PositiveInt | None = None
    """How many samples to draw, for the drawn faces; 20,000 by default."""


class CacheSection(Section):
    """A cache of the shards on a disk of each machine, shared by its workers and by all jobs."""

    folder: str
    """Folder on a fast local disk; it is made if need be."""
    limit: Size
    """Most bytes to keep; what was not used for longest goes first."""


class DataSection(Section):
    """Where the images are, and how they reach the model."""

    train: str
    """Packed training set: a folder or s3://bucket/prefix."""
    validation: str | None = None
    """Packed validation set: a folder or s3://bucket/prefix."""
    source: SourceSection | None = None
    """Fetch and pack this data set when `train` is a local folder that is not there yet."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """For sets of pairs: which image is the input and which the target."""
    augment: AugmentSection = AugmentSection()
    """Random changes to training images; none by default."""
    binarize: Literal["dynamic", "fixed"] | None = None
    """Draw every value as black or white with the grey level as probability: dynamic draws anew
    each time a training image is seen, fixed once for all. Held-out images are drawn once."""
    threads: PositiveInt = 2
    """Threads in each worker that decode ahead of the training. Small images, of up to 8,192 values
    such as 64 px grey, are decoded by one thread, which is faster."""
    shuffle_streams: PositiveInt = 96
    """Places of the set that batches are drawn from at the same time; a half, a quarter, ... of it
    where the set has no window for each. A number of workers that divides it gives each worker
    its own parts of the set; the order is the same for any."""
    read_size: Size = ByteSize(4 << 20)
    """Bytes of neighbouring samples in each lane that are read at once and shuffled."""
    prefetch_memory: Size = ByteSize(512 << 20)
    """Memory of each worker for images read and decoded ahead; the windows of its lanes must fit
    into three quarters of it."""
    cache: CacheSection | None = None
    """Keep what was read from a store on a local disk; nothing by default."""
    retry_timeout_s: PositiveFloat = 300
    """Seconds for which a store that is out of reach only pauses the training; then exit code 4."""
    max_corrupt_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of the samples that may be damaged: each is left out, told of, and replaced by another.
    More than these end the training with exit code 4."""


class TrainSection(Section):
    """How long, how fast and in what portions to train. Intervals are counted in images."""

    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Length of the training in passes over the training set; or give `images`."""
    images: PositiveInt | None = None
    """Length of the training in images; or give `epochs`."""
    batch_size: PositiveInt
    """Images per optimizer step over all workers: the same on 1 or 64 of them."""
    microbatch_size: PositiveInt | None = None
    """Most images per forward pass on one worker; without batch norm, the step stays the same."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs forward passes under autocast; weights and optimizers stay fp32."""
    channels_last: bool = False
    """Keep images and convolutions channels-last in memory: what bf16 on a GPU is fastest with."""
    compile: bool = False
    """Compile the losses with torch.compile: minutes at the start, faster steps afterwards."""
    seed: NonNegativeInt = 0
    """Start of all randomness; the same job with the same seed gives the same result."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights to sample with."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient of each phase to this L2 norm."""
    log_every: PositiveInt | None = None
    """Images between two points of the training metrics; by default about 100 points an epoch."""
    checkpoint_every: PositiveInt | None = None
    """Images between two checkpoints; by default one an epoch. The end always gets one."""
    sample_every: PositiveInt | None = None
    """Images between two sample grids; by default one an epoch."""
    validate_every: PositiveInt | None = None
    """Images between two validations; by default one an epoch."""

    def total_images(self, num_samples: int) -> int:
        """Length of the training in images, for a set of ``num_samples``: whole batches."""
        wanted = self.images if self.images is not None else (self.epochs or 0) * num_samples
        return max(1, math.ceil(wanted / self.batch_size)) * self.batch_size


class WorkerRange(Section):
    """As many workers as there is room for; they change when machines come and go."""

    min: PositiveInt
    """Fewest workers to train with; with less room, training waits."""
    max: PositiveInt
    """Most workers to train with."""


class GuardSection(Section):
    """What happens when the training goes astray: docs/reliability.md."""

    gradients: Literal["watch", "off"] = "watch"
    """watch: an update whose gradient is not finite is left out, and if that goes on the training
    goes back; off: it is made, and the training ends at the next log or checkpoint."""
    max_consecutive_skips: NonNegativeInt = 3
    """Updates of one phase in a row that may be left out; one more, and the training goes back."""
    max_rollbacks: NonNegativeInt = 2
    """How often it may go back to the newest checkpoint; after that it ends with exit code 6."""
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1)
    """Factor on all learning rates, once more each time the training goes back."""
    max_grad_norm_ratio: float | None = Field(default=None, gt=1)
    """Also leave out an update with a norm above this many times the mean of those before."""
    collapse: Literal["off", "warn", "stop"] = "warn"
    """What a sign of collapse does, such as samples that are all alike: nothing, a warning, or
    the end with exit code 6."""
    collapse_patience: PositiveInt | None = None
    """Images for which such a sign must last; by default one epoch."""


class ClusterSection(Section):
    """What to train on. The defaults fit one laptop."""

    workers: Annotated[
        Annotated[PositiveInt, Tag("number")] | Annotated[WorkerRange, Tag("range")],
        Discriminator(lambda given: "range" if isinstance(given, dict | WorkerRange) else "number"),
    ] = 1
    """Processes that train together, one model copy each: a number, or {min: 1, max: 4}."""
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """1 trains each worker on a GPU of its own; 0 trains on the CPU."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores for each worker."""
    max_failures: NonNegativeInt = 3
    """How often training may restart from the newest checkpoint after a lost worker."""
    hang_timeout_s: PositiveFloat = 45
    """Seconds in one step after which workers are taken for stuck and restarted; at least ten times
    as long as the longest step before."""

    @property
    def min_workers(self) -> int:
        """The fewest workers to train with."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def max_workers(self) -> int:
        """The most workers to train with."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers


class Price(Section):
    """What an hour costs."""

    gpu_hour: NonNegativeFloat | None = None
    """Price of a GPU for one hour; where it is that of a whole machine, leave out `cpu_hour`."""
    cpu_hour: NonNegativeFloat | None = None
    """Price of a CPU core for one hour."""
    currency: str | None = Field(default=None, pattern=r"^[A-Za-z]{1,8}$")
    """Of both prices, such as EUR; it is only shown."""

    def of(self, gpu_hours: float, cpu_hours: float) -> float:
        """What so many hours cost."""
        return gpu_hours * (self.gpu_hour or 0) + cpu_hours * (self.cpu_hour or 0)


class CostSection(Price):
    """What the workers cost, which MLflow shows as cost/total: the price, or where it is found."""

    prices: str | None = None
    """A YAML file with a section of gpu_hour, cpu_hour and currency for each kind of machine; a
    relative path starts at the job file's folder."""
    kind: str | None = None
    """Which of `prices` is taken, such as a10g-spot."""


class TrackingSection(Section):
    """Where metrics, pictures and artifacts go."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI: a server (http://...) or a local database (sqlite:///...)."""
    experiment: str | None = None
    """MLflow experiment; by default the job's name."""
    retry_timeout_s: NonNegativeFloat = 300
    """How long an MLflow out of reach is waited for, at the start and again at the end; while
    training, nothing waits for it."""


class RegisterSection(Section):
    """The registered model that the training ends with."""

    name: str = Field(min_length=1, pattern=r"^[^/:@]+$")
    """Name in MLflow's registry, without / : @; the new version gets the alias `candidate`."""


class Job(Section):
    """One training job, as written in jobs/*.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the job: letters, digits, dots, dashes."""
    model: SerializeAsAny[ModelConfig]
    """`name` is a file in models/; the other keys are that file's Config."""
    data: DataSection
    train: TrainSection
    guard: GuardSection = GuardSection()
    cluster: ClusterSection = ClusterSection()
    tracking: TrackingSection = TrackingSection()
    cost: CostSection | None = None
    """What the workers cost; hours are counted without it too."""
    storage: str = "runs"
    """Where checkpoints go: a folder or s3://bucket/prefix."""
    register_as: RegisterSection | None = Field(default=None, alias="register")
    """Register the trained model under this name."""
    sweep: SweepSection | None = None
    """Search for the best values of some fields; without it the job is one training."""

    @property
    def images_per_pass(self) -> int:
        """Images of one forward pass on one worker, in training and so in sampling."""
        share = max(1, self.train.batch_size // self.cluster.max_workers)
        return min(share, self.train.microbatch_size or share)
