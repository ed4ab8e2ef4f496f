"""Check a job before its run: what `orchestrator run` would refuse about its data, and its GPUs."""

from orchestrator.config.gpus import describe_gpus, resolve_gpus
from orchestrator.config.load import LoadedJob
from orchestrator.config.rules import training_places
from orchestrator.data.format.shard_index import INDEX
from orchestrator.data.loading.compatibility import open_training_set
from orchestrator.diagnostics.doctor import Check
from orchestrator.errors import DataError, OrchestratorError
from orchestrator.runs.evaluation_task import check_evaluation_sets
from orchestrator.runs.resolved_job import resolve_job
from orchestrator.storage.open import open_storage


def check_data(loaded: LoadedJob) -> Check:
    """Check that the job's sets are there and fit its model and its batch size.

    A set that `orchestrator run` would fetch first is not a mistake.
    """
    job = resolve_job(loaded).job
    uri = job.data.train
    paths = [("data", "train")] if isinstance(uri, str) else list(training_places(job))
    shown = " and ".join(loaded.display(*path) for path in paths)
    try:
        fetches = job.data.source is not None
        if fetches and isinstance(uri, str) and not open_storage(uri).exists(INDEX):
            if "://" not in uri:
                return Check("data", "ok", f"{shown} is not there yet; the run fetches it first")
            remedy = "run the command that `orchestrator plan` shows"
            return Check("data", "fail", f"{shown} is not there yet", remedy)
        packed = open_training_set(job)
        if job.evaluate is not None:
            check_evaluation_sets(job)
    except OrchestratorError as error:
        message = str(error)
        for path in (*training_places(job), ("data", "validation")):
            message = loaded.references.redact(message, path)
        wrong = isinstance(error, DataError)
        remedy = "change the job or the set; `orchestrator run` would refuse them"
        reach = "make the storage reachable from here, or check where the job will run"
        return Check("data", "fail" if wrong else "warn", message, remedy if wrong else reach)
    fits = "fits" if len(packed.sets) == 1 else "fit"
    return Check("data", "ok", f"{shown} {fits}: {packed.num_samples:,} samples")


def check_gpu_use(loaded: LoadedJob, num_gpus: int) -> Check:
    """Say what the workers use of ``num_gpus`` GPUs, and whether there are enough."""
    job = resolve_gpus(loaded, num_gpus).job
    found = describe_gpus(job, num_gpus)
    if job.cluster.gpus * job.cluster.min_workers > num_gpus:
        return Check("GPUs", "warn", found, "wait for nodes to join, or use fewer workers or CPUs")
    return Check("GPUs", "ok", found)
