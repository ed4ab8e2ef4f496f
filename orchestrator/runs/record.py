"""Record of a run in the storage.

<storage>/<run>/run.json       its record, written before anything else
<storage>/<run>/job.yaml       the resolved job, without secrets
<storage>/<run>/drivers/       leases of its drivers, see lease.py
<storage>/<run>/usage/         what its workers used, see usage.py
<storage>/<run>/trained.json   written when its training is over and its model is to be registered
<storage>/<run>/finished.json  written last
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from orchestrator.bounds import Name
from orchestrator.config.flatten import flatten
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.record_reader import DamagedRecord, parse_format, parse_record
from orchestrator.redaction import mask
from orchestrator.storage.base import Storage

FORMAT = 2
FINISHED = "finished.json"
REMEDY = "restore it from a backup, or start a new run with --no-resume"
_Id = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]


@dataclass(frozen=True)
class RunRecord:
    """Names and ids of a run, as the storage keeps them."""

    run: Name
    """Name of the run and of its folder in the storage."""
    job: Name
    mlflow_run_id: _Id
    experiment_id: _Id
    data_digest: _Id

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
            DamagedRecord: it is not a record of this run.
        """
        return cls.parse(storage, run, storage.get_record(f"{run}/run.json"))

    @classmethod
    def parse(cls, storage: Storage, run: str, content: bytes) -> "RunRecord":
        """Parse the content of run.json. Raises as ``read`` does."""
        where = place(storage, f"{run}/run.json")
        check_format(f"{run}/run.json", parse_format(content, where, REMEDY, 1), FORMAT)
        record = parse_record(cls, content, where, REMEDY)
        if record.run != run:
            raise DamagedRecord(where, f"run: it names {record.run!r}, not {run}", REMEDY)
        return record

    def write(self, storage: Storage, job: str) -> None:
        """Write the record, and the resolved ``job`` beside it."""
        storage.put(f"{self.run}/job.yaml", job.encode())
        record = {"format": FORMAT, **asdict(self)}
        storage.put(self.key, json.dumps(record, indent=1).encode())

    def mark_trained(self, storage: Storage) -> None:
        """Record that the training is over: whatever ends the run now, its model is still due."""
        storage.put(f"{self.run}/trained.json", json.dumps({"format": FORMAT}).encode())

    def is_trained(self, storage: Storage) -> bool:
        """Whether the training is over."""
        return storage.exists(f"{self.run}/trained.json")

    def mark_finished(self, storage: Storage) -> None:
        """Record that nothing of the run is left to do."""
        storage.put(f"{self.run}/{FINISHED}", json.dumps({"format": FORMAT}).encode())


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

    Names damaged records in the log. Raises UsageError at a run that another version of the
    orchestrator started.
    """
    keys = set(storage.list(f"{job}-"))
    names = sorted(key.partition("/")[0] for key in keys if key.endswith("/run.json"))
    for name in reversed(names):
        if f"{name}/{FINISHED}" in keys:
            continue
        try:
            content = storage.get_record(f"{name}/run.json")
            values = parse_record(
                dict[str, Any], content, place(storage, f"{name}/run.json"), REMEDY
            )
            if values.get("job") == job or not isinstance(values.get("job"), str):
                yield RunRecord.parse(storage, name, content)
        except DamagedRecord as error:
            log_info(f"run {name} is passed over: {error}")


def newest_unfinished_run(storage: Storage, job: str) -> RunRecord | None:
    """Return the newest run of the job called ``job`` that did not finish, or None."""
    return next(unfinished_runs(storage, job), None)


def read_job(storage: Storage, run: str) -> str:
    """Read the resolved job of ``run``. Raises NotFound, or DamagedRecord if it is not YAML."""
    key = f"{run}/job.yaml"
    content = storage.get_record(key)
    try:
        text = content.decode()
        flatten(text)
    except ValueError as error:
        raise DamagedRecord(place(storage, key), str(error), REMEDY) from error
    return text


def place(storage: Storage, key: str) -> str:
    """Return where ``key`` is, for messages."""
    return f"{mask(storage.uri.rstrip('/'))}/{key}"
