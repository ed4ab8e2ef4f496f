"""Checks that involve more than one field of a job."""

from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.addresses import storage_uri_problem
from orchestrator.config.data_section import format_size
from orchestrator.config.datasets import check_dataset_request
from orchestrator.config.job import Job, WorkerRange
from orchestrator.config.paths import tracking_uri_problem
from orchestrator.redaction import mask


class Problem(NamedTuple):
    """A mistake in a job."""

    path: tuple[str | int, ...]
    """Keys from the top of the file to the value, such as ("train", "batch_size")."""
    message: str


def check_cross_fields(job: Job) -> Iterator[Problem]:
    """Yield the mistakes that involve several fields; each message has the names and values."""
    yield from _check_batches(job)
    yield from _check_length(job)
    yield from _check_augmentation(job)
    if job.train.validate_every is not None and job.data.validation is None:
        message = f"{job.train.validate_every} needs a validation set; set data.validation"
        yield Problem(("train", "validate_every"), message)
    yield from _check_memory(job)
    yield from _check_cost(job)
    yield from _check_source(job)
    if (problem := tracking_uri_problem(job.tracking.uri)) is not None:
        yield Problem(("tracking", "uri"), problem)
    yield from _check_mixture(job)
    places: dict[tuple[str | int, ...], str | None] = {
        **training_places(job),
        ("data", "validation"): job.data.validation,
        ("data", "cache", "folder"): job.data.cache.folder if job.data.cache else None,
        ("storage",): job.storage,
    }
    for path, place in places.items():
        if place is not None and (problem := storage_uri_problem(place)) is not None:
            yield Problem(path, f"{mask(place)!r} {problem}")


def training_places(job: Job) -> dict[tuple[str | int, ...], str]:
    """Return the places of the training sets by their keys."""
    train = job.data.train
    if isinstance(train, str):
        return {("data", "train"): train}
    return {("data", "train", i, "path"): each.path for i, each in enumerate(train)}


def _check_mixture(job: Job) -> Iterator[Problem]:
    """Check that no set is there twice, and that none would have to be fetched."""
    if isinstance(job.data.train, str):
        return
    if job.data.source is not None:
        message = "fetches one set, and data.train has several; fetch it with `orchestrator data "
        message += f"fetch {job.data.source.name} FOLDER`, and remove data.source"
        yield Problem(("data", "source"), message)
    first: dict[str, int] = {}
    for number, each in enumerate(job.data.train):
        if (before := first.setdefault(each.path.rstrip("/"), number)) != number:
            yield Problem(
                ("data", "train", number, "path"),
                f"{mask(each.path)!r} is data.train.{before}.path too, so that its samples would "
                "come twice in a pass; list it once, with a greater weight",
            )


def _check_batches(job: Job) -> Iterator[Problem]:
    train, cluster, most = job.train, job.cluster, job.cluster.max_workers
    if isinstance(cluster.workers, WorkerRange):
        if cluster.min_workers > most:
            message = f"{cluster.min_workers} is more than cluster.workers.max, which is {most}"
            yield Problem(("cluster", "workers", "min"), message)
        if train.batch_size < most:
            yield Problem(
                ("train", "batch_size"),
                f"{train.batch_size} leaves some of {most} workers (cluster.workers.max) without "
                f"an image; use {most} or more",
            )
    elif train.batch_size % most:
        yield Problem(
            ("train", "batch_size"),
            f"{train.batch_size} cannot be split over {most} workers (cluster.workers); use a "
            f"multiple of {most}",
        )
    share = train.batch_size // cluster.min_workers
    if train.microbatch_size is not None and train.microbatch_size > max(share, 1):
        yield Problem(
            ("train", "microbatch_size"),
            f"{train.microbatch_size} is more than a worker's {share} images of a batch "
            f"(train.batch_size {train.batch_size} over cluster.workers {cluster.min_workers}); "
            f"use at most {max(share, 1)}",
        )
    fewest, smallest = job.model.fewest_images, _smallest_pass(job)
    if smallest < fewest:
        yield Problem(
            ("train", "batch_size"),
            f"{train.batch_size} leaves a forward pass of {smallest} image to a worker, and the "
            f"model {job.model.name} needs {fewest} or more; use a larger batch_size, fewer "
            "cluster.workers, or a train.microbatch_size that divides a worker's images",
        )


def _smallest_pass(job: Job) -> int:
    """Return the fewest images of a forward pass, for any number of workers that the job allows."""
    batch, workers = job.train.batch_size, range(job.cluster.min_workers, job.cluster.max_workers)
    counts = (*workers, job.cluster.max_workers)
    shares = {max(1, share) for n in counts for share in (batch // n, -(-batch // n))}
    passes: list[int] = []
    for share in shares:
        size = min(share, job.train.microbatch_size or share)
        passes.append(share % size or size)
    return min(passes)


def _check_length(job: Job) -> Iterator[Problem]:
    train = job.train
    if train.epochs is None and train.images is None:
        message = "has neither epochs nor images; give one of them, such as `epochs: 10`"
        yield Problem(("train",), message)
    if train.epochs is not None and train.images is not None:
        yield Problem(
            ("train", "epochs"),
            f"{train.epochs:g} epochs and train.images {train.images} are both given; "
            "remove one, or set it to null",
        )


def _check_augmentation(job: Job) -> Iterator[Problem]:
    resize, crop, size = job.data.augment.resize, job.data.augment.crop, job.model.image_size
    if crop is not None and crop != size:
        message = f"{crop} must equal model.image_size, which is {size}; use {size}"
        yield Problem(("data", "augment", "crop"), message)
    if resize is not None and resize < size:
        message = f"{resize} is smaller than model.image_size, which is {size}; use {size} or more"
        yield Problem(("data", "augment", "resize"), message)
    if resize is not None and resize > size and crop is None:
        yield Problem(
            ("data", "augment", "resize"),
            f"{resize} needs a crop to model.image_size, which is {size}; "
            f"add data.augment.crop: {size}",
        )


def _check_memory(job: Job) -> Iterator[Problem]:
    """Check that the windows of a worker's shuffle streams fit into 3/4 of prefetch_memory."""
    data, streams = job.data, -(-job.data.shuffle_streams // job.cluster.min_workers)
    if 4 * streams * data.read_size > 3 * data.prefetch_memory:
        yield Problem(
            ("data", "prefetch_memory"),
            f"{format_size(data.prefetch_memory)} is too small for a worker's {streams} shuffle "
            f"streams (data.shuffle_streams {data.shuffle_streams}) with windows of "
            f"{format_size(data.read_size)} (data.read_size); use "
            f"{-(-4 * streams * data.read_size // (3 << 20))}MiB or more, or a smaller read_size",
        )


def _check_cost(job: Job) -> Iterator[Problem]:
    cost = job.cost
    if cost is None:
        return
    if cost.gpu_hour is None and cost.cpu_hour is None:
        message = "has no price; give gpu_hour or cpu_hour, or prices and kind of a table"
        yield Problem(("cost",), message)
    else:
        yield from check_gpu_price(job)


def check_gpu_price(job: Job) -> Iterator[Problem]:
    """Yield the mistake of a price without one for the GPUs that the workers have."""
    if job.cost is not None and job.cluster.gpus and job.cost.gpu_hour is None:
        yield Problem(
            ("cost",),
            f"has no gpu_hour, and cluster.gpus_per_worker is {job.cluster.gpus}; add the price of "
            "one GPU per hour, 0 if it is free",
        )


def _check_source(job: Job) -> Iterator[Problem]:
    """Check that the job reads the set where it is written: DEST/train and DEST/validation."""
    data, source = job.data, job.data.source
    if source is None or not isinstance(data.train, str):
        return
    problem = check_dataset_request(source.name, source.size, source.count, source.derive_input)
    if problem is not None:
        yield Problem(("data", "source"), problem)
    resize, crop, size = data.augment.resize, data.augment.crop, job.model.image_size
    if resize is None and source.size != size and not (crop and source.size > size):
        yield Problem(
            ("data", "source", "size"),
            f"{source.size} is not model.image_size, which is {size}; use {size}, or set "
            f"data.augment.resize: {size}",
        )
    root, last = data.train.rstrip("/").rpartition("/")[::2]
    if not root or last != "train":
        yield Problem(
            ("data", "train"),
            f"{data.train!r} must end in /train, where data.source writes the training set; "
            "use for example data/openmoji/train",
        )
    elif data.validation not in (None, f"{root}/validation"):
        yield Problem(
            ("data", "validation"),
            f"{data.validation!r} is not where data.source writes the validation set; "
            "use data.train with /validation instead of /train",
        )
