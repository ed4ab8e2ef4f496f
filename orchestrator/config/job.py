"""The sections of a job file, as pydantic models.

This module needs nothing but pydantic, and torch through the models' Config, so that the training
loop can be used where nothing else is installed; load.py reads files, overrides and positions.
"""

import math
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
)

from orchestrator.bounds import (
    NOT_BOOLEAN,
    BatchSize,
    Count,
    Images,
    Money,
    Name,
    NonNegativeCount,
    NonNegativeSeconds,
    Seconds,
    Seed,
    Text,
)
from orchestrator.config.data_section import DataSection
from orchestrator.config.evaluate_section import EvaluateSection
from orchestrator.config.register_section import RegisterSection
from orchestrator.config.s3_section import S3Section
from orchestrator.config.section import Section
from orchestrator.config.sweep import SweepSection
from orchestrator.models.base import ModelConfig


class TrainSection(Section):
    """Length, batch size and precision of the training. Intervals are counted in images."""

    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Length of the training in epochs; alternatively give `images`. An epoch is as many images as
    the training set has; of several sets, as many as all of them have together."""
    images: Images | None = None
    """Length of the training in images; alternatively give `epochs`."""
    batch_size: BatchSize
    """Global batch size, over all workers: results do not depend on the number of workers."""
    microbatch_size: BatchSize | None = None
    """Maximum number of images per forward pass on one worker (gradient accumulation). Without
    batch norm, it does not change the result."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs forward passes under autocast; weights and optimizer states stay in fp32."""
    channels_last: bool = False
    """Use the channels-last memory format for images and convolutions, for bf16 on GPUs."""
    compile: bool = False
    """Compile the losses with torch.compile: minutes at the start, faster steps afterwards."""
    seed: Seed = 0
    """Seed of all randomness; the same job with the same seed gives the same result."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, used for sampling."""
    max_grad_norm: float | None = Field(default=None, gt=0, le=1e12)
    """Clip the gradient of each phase to this L2 norm."""
    log_every: Images | None = None
    """Images between two points of the training metrics; by default about 100 points per epoch."""
    checkpoint_every: Images | None = None
    """Images between two checkpoints; by default one epoch. The end always gets a checkpoint."""
    sample_every: Images | None = None
    """Images between two sample grids; by default one epoch."""
    validate_every: Images | None = None
    """Images between two validations; by default one epoch."""

    def total_images(self, num_samples: int) -> int:
        """Return the length in images, rounded up to whole batches, for a set of this size."""
        wanted = self.images if self.images is not None else (self.epochs or 0) * num_samples
        return max(1, math.ceil(wanted / self.batch_size)) * self.batch_size


class WorkerRange(Section):
    """Elastic training: as many workers as the cluster has room for, within these limits."""

    min: Count
    """Minimum number of workers; with less room, training waits."""
    max: Count
    """Maximum number of workers."""


class GuardSection(Section):
    """Protection against divergence and collapse; see docs/reliability.md."""

    gradients: Literal["watch", "off"] = "watch"
    """watch: skip updates whose gradient is not finite, and roll back if that persists; off: apply
    them, and end the training at the next log or checkpoint."""
    max_consecutive_skips: NonNegativeCount = 3
    """Maximum number of consecutive updates of one phase that are skipped; one more triggers a
    rollback."""
    max_rollbacks: NonNegativeCount = 2
    """Maximum number of rollbacks to the newest checkpoint; then training ends with exit code 6."""
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1)
    """Factor applied to all learning rates at each rollback."""
    max_grad_norm_ratio: float | None = Field(default=None, gt=1, le=1e12)
    """Also skip updates whose gradient norm exceeds this multiple of its running mean."""
    collapse: Literal["off", "warn", "stop"] = "warn"
    """What to do when training seems to have collapsed, for example if all samples look alike:
    nothing, log a warning, or end with exit code 6."""
    collapse_patience: Images | None = None
    """Images during which signs of collapse must persist; by default one epoch."""
    collapse_grace: Images | None = None
    """Images before samples that look alike from the start count as a collapse; by default one
    epoch, but at least a tenth and at most half of the training. After samples were diverse, a
    fall counts at once."""


def _tag_of_workers(value: object) -> str:
    return "range" if isinstance(value, dict | WorkerRange) else "number"


class ClusterSection(Section):
    """Resources for the training. The defaults fit a laptop."""

    workers: Annotated[
        Annotated[Count, Tag("number")] | Annotated[WorkerRange, Tag("range")],
        Discriminator(_tag_of_workers),
    ] = 1
    """Number of data-parallel workers, or a range for elastic training: {min: 1, max: 4}."""
    gpus_per_worker: Annotated[Literal["auto", 0, 1], NOT_BOOLEAN] = "auto"
    """1 trains each worker on its own GPU; 0 trains on the CPU. auto is 1 if the cluster, or this
    machine, has a GPU when the run starts; a resumed run keeps what it had."""
    cpus_per_worker: int = Field(default=1, gt=0, le=4_096)
    """CPU cores per worker."""
    max_failures: NonNegativeCount = 3
    """Maximum number of restarts from the newest checkpoint after worker failures."""
    hang_timeout_s: Seconds = 45
    """A worker that spends this many seconds in one step counts as hung, and all workers restart;
    at least ten times the longest step so far."""

    @property
    def gpus(self) -> int:
        """GPUs per worker; 0 for an `auto` that was not resolved, see config/gpus.py."""
        return 0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def min_workers(self) -> int:
        """Minimum number of workers."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def max_workers(self) -> int:
        """Maximum number of workers."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers


class Price(Section):
    """Price of an hour of compute."""

    gpu_hour: Money | None = None
    """Price of one GPU per hour. If it is the price of a whole machine, omit `cpu_hour`."""
    cpu_hour: Money | None = None
    """Price of one CPU core per hour."""
    currency: str | None = Field(default=None, max_length=8, pattern=r"^[A-Za-z]{1,8}$")
    """Currency of both prices, such as EUR; used for display only."""

    def total(self, gpu_hours: float, cpu_hours: float) -> float:
        """Return the price of this many hours."""
        return gpu_hours * (self.gpu_hour or 0) + cpu_hours * (self.cpu_hour or 0)


class CostSection(Price):
    """Price of the workers, logged to MLflow as cost/total: given here or taken from a table."""

    prices: Text | None = None
    """YAML file with gpu_hour, cpu_hour and currency for each kind of machine. A relative path
    starts at the job file's folder."""
    kind: Name | None = None
    """Kind of machine in `prices`, such as a10g-spot."""


class TrackingSection(Section):
    """Where metrics, sample grids and artifacts are logged."""

    uri: Text = "sqlite:///mlflow.db"
    """MLflow tracking URI: a server (http://...) or a local database (sqlite:///...)."""
    experiment: Name | None = None
    """MLflow experiment; by default the job's name."""
    retry_timeout_s: NonNegativeSeconds = 300
    """How long to wait for an unreachable MLflow server, in seconds, at the start and again at the
    end. During training nothing waits for MLflow."""


class Job(Section):
    """A training job or a sweep, as written in jobs/*.yaml."""

    name: str = Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the job: letters, digits, dots and dashes."""
    model: SerializeAsAny[ModelConfig]
    """The model: `name` is a file in models/; the other keys are the fields of its Config."""
    data: DataSection
    train: TrainSection
    guard: GuardSection = GuardSection()
    cluster: ClusterSection = ClusterSection()
    tracking: TrackingSection = TrackingSection()
    cost: CostSection | None = None
    """Price of the workers; hours are counted in any case."""
    storage: Text = "runs"
    """Where checkpoints are stored: a folder, or s3://, gs:// or az://bucket/prefix."""
    s3: S3Section | None = None
    """What S3 buckets need beyond an endpoint and credentials, which the environment has."""
    register_as: RegisterSection | None = Field(default=None, alias="register")
    """Register the trained model under this name."""
    evaluate: EvaluateSection | None = None
    """Measure the distance of generated to real images beside the training."""
    sweep: SweepSection | None = None
    """Search for the best values of some fields; without it the job is a single run."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables that each process of the job needs."""
        return {} if self.s3 is None else self.s3.variables()

    @property
    def images_per_pass(self) -> int:
        """Number of images per forward pass on one worker, in training and in sampling."""
        share = max(1, self.train.batch_size // self.cluster.max_workers)
        return min(share, self.train.microbatch_size or share)
