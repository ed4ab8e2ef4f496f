"""What the storage of a run tells of its drivers, workers, checkpoints, evaluations and costs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.errors import DataError, UsageError
from orchestrator.run_report.stored_job import StoredJob
from orchestrator.runs.checkpoint_reader import MANIFEST
from orchestrator.runs.checkpoints import QUARANTINED, Checkpoints
from orchestrator.runs.evaluation_task import EvaluationRecord, read_record
from orchestrator.runs.lease import read_drivers
from orchestrator.runs.record import FINISHED, read_job
from orchestrator.runs.unsent import KeptPicture, read_unsent, unsent_keys
from orchestrator.runs.usage import Usage, read_usage, sum_usage
from orchestrator.storage.base import NotFound, Storage
from orchestrator.tracking.spool import Record

T = TypeVar("T")


@dataclass(frozen=True)
class RunFacts:
    """Records of a run in its storage."""

    job: StoredJob
    drivers: tuple[str, ...] = ()
    """How each driver ended, oldest first; see lease.read_drivers."""
    num_groups: int = 0
    """Groups of workers that were started: the first one, and one by each restart."""
    usage: Usage = field(default_factory=Usage)
    checkpoints: tuple[str, ...] = ()
    """Names of those that are kept, oldest first."""
    num_quarantined: int = 0
    evaluations: tuple[EvaluationRecord, ...] = ()
    """By images seen."""
    unsent: tuple[Record, ...] = ()
    """What MLflow lacked at the last checkpoint, or at the end."""
    unsent_pictures: dict[str, KeptPicture] = field(default_factory=dict)
    """By the names of their files."""
    is_finished: bool = False
    damaged: tuple[str, ...] = ()
    """A line for each record that cannot be read; the report goes without it."""


def read_facts(storage: Storage, run: str) -> RunFacts:
    """Read the records of ``run``.

    Raises DamagedRecord if its job is damaged, NotFound if it has none, and as Storage does. Other
    damaged records are listed in the result.
    """
    job = StoredJob(read_job(storage, run))
    damaged: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except NotFound:  # deleted between two looks
            return otherwise
        except (DataError, UsageError) as error:  # damaged, or of another version
            damaged.append(str(error))
            return otherwise

    evaluations = []
    for key in storage.list(f"{run}/evaluations/"):
        record = attempt(lambda key=key: read_record(storage, key), None)  # type: ignore[misc]
        if record is not None:
            evaluations.append(record)
    listed = Checkpoints(storage, f"{run}/checkpoints", "").listed()
    used = read_usage(storage, run)
    none: tuple[list[Record], dict[str, KeptPicture]] = ([], {})
    unsent: list[Record] = []
    pictures: dict[str, KeptPicture] = {}
    for key in unsent_keys(storage, run):
        found = attempt(lambda key=key: read_unsent(storage, key), none)  # type: ignore[misc]
        unsent += found[0]
        pictures |= found[1]
    return RunFacts(
        job=job,
        drivers=tuple(attempt(lambda: read_drivers(storage, run), [])),
        num_groups=len(used),
        usage=sum_usage(used, job.price),
        checkpoints=tuple(
            name for name, files in listed.items() if MANIFEST in files and QUARANTINED not in files
        ),
        num_quarantined=sum(QUARANTINED in files for files in listed.values()),
        evaluations=tuple(sorted(evaluations, key=lambda each: each.images_seen)),
        unsent=tuple(unsent),
        unsent_pictures=pictures,
        is_finished=storage.exists(f"{run}/{FINISHED}"),
        damaged=tuple(damaged),
    )
