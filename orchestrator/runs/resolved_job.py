"""One object for a job as its file gives it and for the same job with absolute paths."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

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

    def with_sections(self, **sections: Any) -> "ResolvedJob":
        """Replace top-level sections of ``job``; what is stored and compared stays as given."""
        return replace(self, job=self.job.model_copy(update=sections))


def resolve_job(loaded: LoadedJob) -> ResolvedJob:
    """Make paths absolute. Raises UsageError if `tracking.uri` is not the address of an MLflow."""
    return ResolvedJob(loaded, resolve_paths(loaded.job))
