"""Plan a job: what it would run and where, without starting, fetching or writing anything."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from orchestrator.config.data_section import format_size
from orchestrator.config.gpus import describe_gpus, resolve_gpus
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.config.rules import training_places
from orchestrator.data.datasets.sources import NAMED_DATASETS, fetch_options
from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.loading.compatibility import check_sets
from orchestrator.diagnostics.dataset_plan import DatasetPlan, plan_mixture, plan_set
from orchestrator.diagnostics.describe_sections import (
    describe_choice,
    describe_evaluation,
    describe_gate,
)
from orchestrator.diagnostics.model_sizes import build_on_meta, checkpoint_bytes, count_parameters
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.runs.evaluation_task import check_evaluation_sets
from orchestrator.runs.resolved_job import resolve_job
from orchestrator.runs.usage import compute_usage
from orchestrator.sweeps.sweep_plan import SweepPlan, plan_sweep
from orchestrator.tracking import check_tracking
from orchestrator.training.preflight import describe_batch_statistics

UNKNOWN = "unknown until fetched"


@dataclass(frozen=True)
class FetchPlan:
    """A data set that has to be fetched first."""

    name: str
    size: int
    destination: str
    packages: str
    download: str
    license: str
    automatic: bool
    """Whether `orchestrator run` fetches it; otherwise `command` has to be run first."""
    command: str


@dataclass(frozen=True)
class Plan:
    """Resources, length, model, data and destinations of a job."""

    job: str
    model: str
    min_workers: int
    workers: int
    cpus: int
    gpus: int
    gpu_use: str | None
    """What the workers use of the GPUs and what stands idle; None if these are not known."""
    precision: str
    batch_size: int
    images_per_worker: int
    microbatches: int
    """Forward passes per step and worker."""
    batch_statistics: str
    """How drawing normalises otherwise than training, and what to do; empty if it does not."""
    phases: tuple[str, ...]
    parameters: dict[str, int]
    """Number of parameters by network."""
    checkpoint_bytes: int
    train: DatasetPlan
    """Several sets are described together here, and each in ``mixed``."""
    mixed: tuple[DatasetPlan, ...]
    """The training sets, if there are several."""
    validation: DatasetPlan | None
    shuffle_streams: int
    """Positions in the training set that batches are drawn from."""
    read_size: int
    """Bytes per request."""
    prefetch_memory: int
    """Bytes per worker for prefetched data."""
    cache: str | None
    steps_per_epoch: float | None
    total_steps: int | None
    total_images: int | None
    checkpoints: str
    tracking: str
    tracking_problem: str | None
    """Why a run from here could not use MLflow, and what to do."""
    experiment: str
    register: str | None
    best: str | None
    """Which checkpoint is registered, if it is not the newest."""
    evaluation: str | None
    """What is measured beside the training."""
    gate: str | None
    """What the gate will ask before an alias moves to the registered model."""
    price: str | None
    """Cost of one hour of one run."""
    fetch: FetchPlan | None
    sweep: SweepPlan | None

    def json(self) -> str:
        """Format the plan for a script."""
        return json.dumps(asdict(self), indent=2)

    def render(self) -> str:
        """Format the plan as a table of names and values."""
        rows = list(self._rows())
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)

    def _rows(self) -> Iterable[tuple[str, str]]:
        yield "job", self.job
        if self.sweep is not None:
            yield from self.sweep.rows()
        varies = self.min_workers < self.workers
        workers = f"{self.min_workers} to {self.workers}; " * varies + f"{self.workers}"
        cpus, gpus = _count(self.cpus, "CPU"), _count(self.gpus, "GPU")
        yield "workers", f"{workers}, with {cpus} and {gpus} in total"
        yield "", self.gpu_use or "GPUs are counted when the run starts"
        if self.price is not None:
            yield "price", f"{self.price} per hour with {self.workers} workers"
        passes = f"{self.microbatches} microbatches" if self.microbatches > 1 else "one pass"
        per_worker = f"{self.images_per_worker} per worker in {passes}"
        yield "images per step", f"{self.batch_size}: {per_worker}, {self.precision}"
        if self.batch_statistics:
            yield "", self.batch_statistics
        yield "steps per epoch", _number(self.steps_per_epoch)
        steps, images = _number(self.total_steps), _number(self.total_images)
        yield "length", UNKNOWN if self.total_steps is None else f"{steps} steps, {images} images"
        yield "model", f"{self.model}; phases per step: {', '.join(self.phases)}"
        for name, count in self.parameters.items():
            yield f"  {name}", f"{count:,} parameters"
        yield "checkpoint", f"{self.checkpoint_bytes / 1e6:,.1f} MB"
        yield "training set", self.train.describe()
        for each in self.mixed:
            yield "", each.describe()
        if self.validation is not None:
            yield "validation set", self.validation.describe()
        yield from self._data_rows()
        yield "checkpoints", self.checkpoints
        yield "metrics", f"{self.tracking}, experiment {self.experiment}"
        if self.tracking_problem is not None:
            yield "", f"not from here: {self.tracking_problem}"
        yield "registered model", f"{self.register}@candidate" if self.register else "none"
        if self.best is not None:
            yield "", self.best
        if self.evaluation is not None:
            yield "evaluation", self.evaluation
        if self.gate is not None:
            yield "gate", self.gate
        if (fetch := self.fetch) is not None:
            yield "data to fetch", f"{fetch.name} at {fetch.size} px to {fetch.destination}"
            yield "", f"from {fetch.packages}: {fetch.download} download, {fetch.license}"
            yield "", "fetched first" if fetch.automatic else f"first run `{fetch.command}`"

    def _data_rows(self) -> Iterable[tuple[str, str]]:
        size, memory = format_size(self.read_size), format_size(self.prefetch_memory)
        yield "reading", f"{self.shuffle_streams} shuffle streams, {size} per request"
        yield "", f"{memory} of prefetch memory per worker"
        if self.cache:
            yield "", f"cached in {self.cache}"
        if self.shuffle_streams % self.workers:
            divisible = -(-self.shuffle_streams // self.workers) * self.workers
            yield "", f"{self.workers} workers share shuffle streams, in many small requests;"
            yield "", f"avoid that with data.shuffle_streams={divisible}"


def make_plan(loaded: LoadedJob, num_gpus: int | None = None) -> Plan:
    """Plan a run of ``loaded``. Reads the indexes of its sets, and asks MLflow for its experiment.

    Args:
        loaded: the job.
        num_gpus: GPUs of the cluster or machine that it would run on; None if not known.

    Raises:
        DataError: a set exists but its index is corrupt, or it does not fit the job.
        UsageError: the model cannot be built with the given sizes.
    """
    if num_gpus is not None:
        loaded = resolve_gpus(loaded, num_gpus)
    job, places = loaded.job, resolve_job(loaded).job
    train, cluster, tracking = job.train, job.cluster, job.tracking
    data = places.data
    opened: list[ShardSet] = []
    mixed = [plan_set(loaded, uri, path, opened) for path, uri in training_places(places).items()]
    validation_set, held_out = None, list[ShardSet]()
    if data.validation is not None:
        validation_set = plan_set(loaded, data.validation, ("data", "validation"), held_out)
    _check_sets(places, opened, held_out)
    share = train.batch_size // cluster.max_workers
    training_set, total = mixed[0], None
    if len(mixed) > 1:
        training_set, mixed = plan_mixture(places, mixed, opened)
    samples = training_set.num_samples
    if samples is not None or train.images is not None:
        total = train.total_images(samples or 0)
    usage = compute_usage(cluster, cluster.max_workers, 3600, job.cost)
    model, phases = build_on_meta(job.model)
    storage = loaded.display_place(places.storage, "storage")
    return Plan(
        job=job.name,
        model=job.model.name,
        min_workers=cluster.min_workers,
        workers=cluster.max_workers,
        cpus=cluster.max_workers * cluster.cpus_per_worker,
        gpus=cluster.max_workers * cluster.gpus,
        gpu_use=None if num_gpus is None else describe_gpus(job, num_gpus),
        precision=train.precision,
        batch_size=train.batch_size,
        images_per_worker=share,
        microbatches=-(-share // (train.microbatch_size or share)),
        batch_statistics=describe_batch_statistics(model, job.images_per_pass),
        phases=tuple(phase.name for phase in phases),
        parameters=count_parameters(model),
        checkpoint_bytes=checkpoint_bytes(model, phases),
        train=training_set,
        mixed=tuple(mixed) if len(mixed) > 1 else (),
        validation=validation_set,
        shuffle_streams=job.data.shuffle_streams,
        read_size=job.data.read_size,
        prefetch_memory=job.data.prefetch_memory,
        cache=places.data.cache.folder if places.data.cache else None,
        steps_per_epoch=None if samples is None else samples / train.batch_size,
        total_steps=None if total is None else total // train.batch_size,
        total_images=total,
        checkpoints=f"{storage}/{job.name}-<time>/checkpoints",
        tracking=loaded.display_place(places.tracking.uri, "tracking", "uri"),
        tracking_problem=_tracking_problem(loaded, places),
        experiment=loaded.display("tracking", "experiment") if tracking.experiment else job.name,
        register=loaded.display("register", "name") if job.register_as else None,
        best=describe_choice(job),
        evaluation=describe_evaluation(job),
        gate=describe_gate(job),
        price=usage.format_cost() if job.cost else None,
        fetch=_fetch_plan(loaded, data.training_sets[0].path, training_set),
        sweep=plan_sweep(job, total),
    )


def _check_sets(job: Job, opened: list[ShardSet], held_out: list[ShardSet]) -> None:
    """Check those sets that are there."""
    check_sets(opened, held_out[0] if held_out else None, job)
    if job.evaluate is not None and opened and held_out:
        check_evaluation_sets(job)


def _tracking_problem(loaded: LoadedJob, job: Job) -> str | None:
    uri = job.tracking.uri
    try:
        check_tracking(uri, job.tracking.experiment or job.name)
    except EnvironmentProblem as error:
        return str(error).replace(mask(uri), loaded.display_place(uri, "tracking", "uri"))
    return None


def _fetch_plan(loaded: LoadedJob, uri: str, found: DatasetPlan) -> FetchPlan | None:
    source = loaded.job.data.source
    if source is None or found.status != "missing":
        return None
    destination, known = found.uri.removesuffix("/train"), NAMED_DATASETS[source.name]
    return FetchPlan(
        name=source.name,
        size=source.size,
        destination=destination,
        packages=" and ".join(known.packages),
        download=known.download,
        license=known.licence,
        automatic="://" not in uri,
        command=f"orchestrator data fetch {source.name} {shlex.quote(destination)} "
        f"--size {source.size}{fetch_options(source.count, source.derive_input)}",
    )


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
