"""One object for a job as its file gives it and for the same job with absolute paths."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from orchestrator.config.gpus import resolve_gpus
from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.config.paths import resolve_paths
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage


@dataclass(frozen=True)
class ResolvedJob:
    """A loaded job with absolute paths: what a run is started from."""

    loaded: LoadedJob = field(repr=False)
    """As given: what is shown, stored and compared on resume."""
    job: Job = field(repr=False)
    """With absolute paths, for the driver and every worker."""

    @cached_property
    def rendered(self) -> str:
        """The job as YAML with all defaults, without secrets, paths as given."""
        return self.loaded.render()

    def storage(self) -> Storage:
        """Open the job's storage."""
        return open_storage(self.job.storage)

    def with_gpus(self, num_gpus: int, recorded: str | None = None) -> "ResolvedJob":
        """Resolve `cluster.gpus_per_worker: auto`, as config.gpus.resolve_gpus does."""
        loaded = resolve_gpus(self.loaded, num_gpus, recorded)
        number = loaded.job.cluster.gpus_per_worker
        cluster = self.job.cluster.model_copy(update={"gpus_per_worker": number})
        return ResolvedJob(loaded, self.job.model_copy(update={"cluster": cluster}))

    def with_sections(self, **sections: Any) -> "ResolvedJob":
        """Replace top-level sections of ``job``; what is stored and compared stays as given."""
        return replace(self, job=self.job.model_copy(update=sections))


def resolve_job(loaded: LoadedJob) -> ResolvedJob:
    """Make paths absolute. Raises UsageError as ``resolve_paths`` does."""
    return ResolvedJob(loaded, resolve_paths(loaded.job))
