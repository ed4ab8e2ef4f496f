"""Record of a run in the storage.

<storage>/<run>/run.json       its record, written before anything else
<storage>/<run>/job.yaml       the resolved job, without secrets
<storage>/<run>/drivers/       leases of its drivers, see lease.py
<storage>/<run>/usage/         what its workers used, see usage.py
<storage>/<run>/finished.json  written last
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.storage.base import Storage

FORMAT = 2


@dataclass(frozen=True)
class RunRecord:
    """Names and ids of a run, as the storage keeps them."""

    run: str
    """Name of the run and of its folder in the storage."""
    job: str
    mlflow_run_id: str
    experiment_id: str
    data_digest: str

    @property
    def key(self) -> str:
        """Key of the record in the storage."""
        return f"{self.run}/run.json"

    @classmethod
    def read(cls, storage: Storage, run: str) -> "RunRecord":
        """Read the record of ``run``.

        Raises:
            NotFound: there is no such run.
            UsageError: another version of the orchestrator wrote it.
            ValueError, TypeError: it is not a record.
        """
        return cls.from_values(run, json.loads(storage.get(f"{run}/run.json")))

    @classmethod
    def from_values(cls, run: str, values: dict[str, Any]) -> "RunRecord":
        """Make the record from the content of run.json. Raises as ``read`` does."""
        check_format(f"{run}/run.json", values.pop("format", 1), FORMAT)
        return cls(**values)

    def write(self, storage: Storage, job: str) -> None:
        """Write the record, and the resolved ``job`` beside it."""
        storage.put(f"{self.run}/job.yaml", job.encode())
        record = {"format": FORMAT, **asdict(self)}
        storage.put(self.key, json.dumps(record, indent=1).encode())

    def mark_finished(self, storage: Storage) -> None:
        """Record that nothing of the run is left to do."""
        storage.put(f"{self.run}/finished.json", json.dumps({"format": FORMAT}).encode())


def check_format(key: str, found: object, expected: int) -> None:
    """Raise UsageError if another version of the orchestrator wrote ``key`` of a run."""
    if found != expected:
        raise UsageError(
            f"{key} has format {found}, and this version of the orchestrator reads format "
            f"{expected}; finish the run with the version that started it, or start a new run with "
            "--no-resume"
        )


def unfinished_runs(storage: Storage, job: str) -> Iterator[RunRecord]:
    """Yield the runs of the job called ``job`` that did not finish, newest first.

    Raises UsageError at one that another version of the orchestrator started.
    """
    keys = set(storage.list(f"{job}-"))
    names = sorted(key.partition("/")[0] for key in keys if key.endswith("/run.json"))
    for name in reversed(names):
        if f"{name}/finished.json" in keys:
            continue
        try:
            values = json.loads(storage.get(f"{name}/run.json"))
        except ValueError:
            continue  # not a record
        if isinstance(values, dict) and values.get("job") == job:
            yield RunRecord.from_values(name, values)


def newest_unfinished_run(storage: Storage, job: str) -> RunRecord | None:
    """Return the newest run of the job called ``job`` that did not finish, or None."""
    return next(unfinished_runs(storage, job), None)
