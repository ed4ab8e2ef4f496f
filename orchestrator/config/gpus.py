"""Decide what `cluster.gpus_per_worker: auto` means for a run, and say what it uses."""

from dataclasses import replace

from orchestrator.config.env_refs import EnvReferences
from orchestrator.config.flatten import flatten
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.config.rules import check_gpu_price
from orchestrator.config.search_space import num_configurations
from orchestrator.config.sweep import SweepSection
from orchestrator.config.yaml_source import join_path
from orchestrator.errors import UsageError

PATH = ("cluster", "gpus_per_worker")
KEY = join_path(PATH)


def resolve_gpus(loaded: LoadedJob, num_gpus: int, recorded: str | None = None) -> LoadedJob:
    """Return the job with a number in place of `auto`, also if that came from the environment.

    Args:
        num_gpus: GPUs of the cluster, or of this machine without one.
        recorded: for a run that is resumed, its job as it was recorded. It keeps its kind of
            device: on another one the same steps round differently.

    Raises:
        UsageError: the workers get GPUs, and the job has a price for CPU cores only.
    """
    if loaded.job.cluster.gpus_per_worker != "auto":
        return loaded
    before = None if recorded is None else flatten(recorded).get(KEY)
    number = min(1, num_gpus) if before not in ("0", "1", 0, 1) else int(before)
    cluster = loaded.job.cluster.model_copy(update={"gpus_per_worker": number})
    job = loaded.job.model_copy(update={"cluster": cluster})
    for problem in check_gpu_price(job):
        raise UsageError(f"{join_path(problem.path)}: {problem.message}")
    others = {path: ref for path, ref in loaded.references.by_path.items() if path != PATH}
    return replace(loaded, job=job, references=EnvReferences(others))


def check_evaluation_gpu(job: Job, num_gpus: int) -> None:
    """Raise UsageError if the evaluation waits for a GPU that the workers leave to nobody."""
    used = job.cluster.gpus * job.cluster.max_workers
    if job.evaluate is not None and job.evaluate.gpus and used >= num_gpus:
        raise UsageError(
            f"evaluate.gpus: 1 needs {_count(used + 1, 'GPU')}, {used} for the workers and one "
            f"more, and there {'is' if num_gpus == 1 else 'are'} {num_gpus}; use 0"
            + (", or fewer cluster.workers" if job.cluster.max_workers > 1 else "")
        )


def describe_gpus(job: Job, num_gpus: int) -> str:
    """Say in a line what the workers use and what stands idle, of ``num_gpus`` GPUs."""
    cluster = job.cluster
    most = cluster.max_workers
    fewest = cluster.min_workers if job.sweep is None else most  # a trial waits for all workers
    workers = _count(most, "worker") if fewest == most else f"{fewest} to {most} workers"
    if not cluster.gpus:
        if not num_gpus:
            return f"{workers} on CPUs; no GPU"
        return f"{workers} on CPUs; {_count(num_gpus, 'GPU')} idle: {KEY}: 1"
    if fewest > num_gpus:
        have = f"only {num_gpus}" if num_gpus else "none"
        need = "needs" if most == 1 else "need"
        return f"{workers} {need} {_count(fewest, 'GPU')}, and there is {have}: {KEY}: 0"
    if job.sweep is not None:
        return _describe_trials(job.sweep, workers, most, num_gpus)
    used = min(most, num_gpus)
    text = f"{workers} on {used} of {_count(num_gpus, 'GPU')}"
    if used == num_gpus:
        return text
    batch = job.train.batch_size
    larger = [n for n in range(most + 1, num_gpus + 1) if batch % n == 0]
    key = "cluster.workers" if fewest == most else "cluster.workers.max"
    return f"{text}; {_count(num_gpus - used, 'GPU')} idle" + (
        f": {key}: {larger[-1]}" if larger else f" (train.batch_size is {batch})"
    )


def _describe_trials(sweep: SweepSection, workers: str, gpus_each: int, num_gpus: int) -> str:
    room = min(num_gpus // gpus_each, num_configurations(sweep) * sweep.seeds_per_config)
    at_once = min(room, sweep.max_concurrent or room)
    idle = num_gpus - at_once * gpus_each
    text = (
        f"up to {_count(at_once, 'trial')} at once, each with {workers}, on {num_gpus - idle} of "
        f"{_count(num_gpus, 'GPU')}"
    )
    more = f": sweep.max_concurrent: {room}" if at_once < room else ""
    return f"{text}; {_count(idle, 'GPU')} idle{more}" if idle else text


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
