"""What no single field of a job shows to be wrong."""

from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.config.datasets import request_problem
from orchestrator.config.job import (
    ClusterSection,
    DataSection,
    Job,
    SourceSection,
    TrainSection,
    WorkerRange,
    size_text,
)


class Problem(NamedTuple):
    """One thing wrong with a job."""

    path: tuple[str | int, ...]
    """Keys from the top of the file to the value, such as ("train", "batch_size")."""
    message: str


def cross_field_problems(job: Job) -> Iterator[Problem]:
    """What no single field shows to be wrong; each message names both fields and values."""
    train, cluster, data, size = job.train, job.cluster, job.data, job.model.image_size
    yield from _worker_problems(train, cluster)
    if train.epochs is None and train.images is None:
        yield Problem(
            ("train",), "has neither epochs nor images; give one of them, such as `epochs: 10`"
        )
    if train.epochs is not None and train.images is not None:
        yield Problem(
            ("train", "epochs"),
            f"{train.epochs:g} epochs and train.images {train.images} are both given; "
            "remove one, or set it to null",
        )
    share = train.batch_size // cluster.min_workers
    if train.microbatch_size is not None and train.microbatch_size > max(share, 1):
        yield Problem(
            ("train", "microbatch_size"),
            f"{train.microbatch_size} is more than a worker's {share} images of a batch "
            f"(train.batch_size {train.batch_size} over cluster.workers {cluster.min_workers}); "
            f"use at most {max(share, 1)}",
        )
    augment = data.augment
    if augment.crop is not None and augment.crop != size:
        yield Problem(
            ("data", "augment", "crop"),
            f"{augment.crop} must be model.image_size, which is {size}; use {size}",
        )
    if augment.resize is not None and augment.resize < size:
        yield Problem(
            ("data", "augment", "resize"),
            f"{augment.resize} is smaller than model.image_size, which is {size}; "
            f"use {size} or more",
        )
    if augment.resize is not None and augment.resize > size and augment.crop is None:
        yield Problem(
            ("data", "augment", "resize"),
            f"{augment.resize} needs a crop to model.image_size, which is {size}; "
            f"add data.augment.crop: {size}",
        )
    if train.validate_every is not None and data.validation is None:
        yield Problem(
            ("train", "validate_every"),
            f"{train.validate_every} needs a set to validate on; give data.validation",
        )
    yield from _memory_problems(data, cluster)
    yield from _cost_problems(job)
    if data.source is not None:
        yield from _source_problems(data, data.source)


def _worker_problems(train: TrainSection, cluster: ClusterSection) -> Iterator[Problem]:
    most = cluster.max_workers
    if isinstance(cluster.workers, WorkerRange):
        if cluster.min_workers > most:
            yield Problem(
                ("cluster", "workers", "min"),
                f"{cluster.min_workers} is more than cluster.workers.max, which is {most}",
            )
        if train.batch_size < most:
            yield Problem(
                ("train", "batch_size"),
                f"{train.batch_size} leaves some of {most} workers (cluster.workers.max) without "
                f"an image; use {most} or more",
            )
    elif train.batch_size % most:
        yield Problem(
            ("train", "batch_size"),
            f"{train.batch_size} cannot be split over {most} workers "
            f"(cluster.workers); use a multiple of {most}",
        )


def _memory_problems(data: DataSection, cluster: ClusterSection) -> Iterator[Problem]:
    """The windows of a worker's shuffle streams must fit into 3/4 of its prefetch memory."""
    streams = -(-data.shuffle_streams // cluster.min_workers)
    if 4 * streams * data.read_size > 3 * data.prefetch_memory:
        yield Problem(
            ("data", "prefetch_memory"),
            f"{size_text(data.prefetch_memory)} is too small for a worker's {streams} shuffle "
            f"streams (data.shuffle_streams {data.shuffle_streams}) with windows of "
            f"{size_text(data.read_size)} (data.read_size); use "
            f"{-(-4 * streams * data.read_size // (3 << 20))}MiB or more, or a smaller read_size",
        )


def _cost_problems(job: Job) -> Iterator[Problem]:
    cost, gpus = job.cost, job.cluster.gpus_per_worker
    if cost is None:
        return
    if cost.gpu_hour is None and cost.cpu_hour is None:
        yield Problem(
            ("cost",), "has no price; give gpu_hour or cpu_hour, or prices and kind of a table"
        )
    elif gpus and cost.gpu_hour is None:
        yield Problem(
            ("cost",),
            f"has no gpu_hour, and cluster.gpus_per_worker is {gpus}; add the price of a GPU for "
            "an hour, 0 if it costs nothing",
        )


def _source_problems(data: DataSection, source: SourceSection) -> Iterator[Problem]:
    """A fetched set is written as DEST/train and DEST/validation; the job must say the same."""
    problem = request_problem(source.name, source.size, source.count)
    if problem is not None:
        yield Problem(("data", "source"), problem)
    root, last = data.train.rstrip("/").rpartition("/")[::2]
    if not root or last != "train":
        yield Problem(
            ("data", "train"),
            f"{data.train!r} must end in /train, for data.source writes it there; "
            "use for instance data/openmoji/train",
        )
    elif data.validation not in (None, f"{root}/validation"):
        yield Problem(
            ("data", "validation"),
            f"{data.validation!r} is not where data.source writes it; "
            "use data.train with /validation in place of /train",
        )
