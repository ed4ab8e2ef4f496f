"""Records of sweeps in a storage.

<storage>/sweeps/<name>/sweep.json          its record, written before anything else
<storage>/sweeps/<name>/trials/0007.json    record of a trial, written after each change
<storage>/sweeps/<name>/drivers/<term>.json leases of its drivers, see runs/lease.py
<storage>/sweeps/<name>/stop.json           someone has requested a stop
<storage>/sweeps/<name>/finished.json       written last

Nothing else is kept of a sweep. A driver that is killed between two writes leaves complete records,
from which the next driver resumes.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.bounds import Images
from orchestrator.config.flatten import flatten
from orchestrator.config.search_space import num_configurations
from orchestrator.config.sweep import SweepSection
from orchestrator.errors import UsageError
from orchestrator.record_reader import DamagedRecord, parse_format, parse_record
from orchestrator.redaction import mask
from orchestrator.runs.lease import Fence, has_ended, lease_expired
from orchestrator.runs.record import place
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import Sweep, Trial

FOLDER = "sweeps"
FORMAT = 2
"""Of sweep.json and of the trials' records beside it. Format 1 had no ``format`` key."""


REMEDY = "restore it from a backup, or start a new sweep with --no-resume"
_TRIAL = re.compile(r"/\d{4,9}\.json$")


class UnsupportedFormat(UsageError):
    """Another version of the orchestrator wrote the records of a sweep."""


@dataclass(frozen=True)
class SweepRecord:
    """Description of a sweep, fixed at its start."""

    name: str
    job: str
    file_name: str
    text: str
    """Job file as given, with passwords masked."""
    overrides: tuple[str, ...]
    rendered: str
    """Resolved job, without secrets."""
    section: dict[str, Any]
    data_digest: str
    total_images: Images
    """Of a complete trial."""
    report_every: Images
    """Images between two intermediate results."""
    tracking_uri: str
    """As given, without its password: a relative path stays right when the folder is moved."""
    experiment_id: str
    mlflow_run_id: str
    """Of the parent run."""

    @property
    def sweep(self) -> SweepSection:
        """The sweep block, parsed."""
        return SweepSection.model_validate(self.section)


class SweepStore:
    """Records of one sweep in a storage."""

    def __init__(self, storage: Storage, name: str, fence: Fence | None = None) -> None:
        self.storage, self.name = storage, name
        self.fence = fence
        """Of the driver that writes; refuses to write once it is superseded."""
        self.key = f"{FOLDER}/{name}"
        """Folder of the sweep in the storage."""

    def create(self, record: SweepRecord) -> None:
        """Write the sweep's record, before anything else."""
        self._put("sweep.json", {"format": FORMAT, **asdict(record)})

    def read_record(self) -> SweepRecord:
        """Read the sweep's record. Raises UsageError if there is none, or UnsupportedFormat."""
        key = f"{self.key}/sweep.json"
        try:
            content = self.storage.get_record(key)
        except NotFound:
            known = ", ".join([store.name for store in list_sweeps(self.storage)][:8])
            listed = f"it has: {known}" if known else "it has no sweeps"
            raise UsageError(
                f"there is no sweep {self.name} in {mask(self.storage.uri)}; {listed}"
            ) from None
        where = place(self.storage, key)
        if (found := parse_format(content, where, REMEDY, 1)) != FORMAT:
            raise UnsupportedFormat(
                f"{key} has format {found}, and this version of the orchestrator reads format "
                f"{FORMAT}; finish sweep {self.name} with the version that started it, or start a "
                "new sweep with --no-resume"
            )
        record = parse_record(SweepRecord, content, where, REMEDY)
        if record.name != self.name:
            raise DamagedRecord(where, f"name: it names {record.name!r}, not {self.name}", REMEDY)
        try:
            flatten(record.rendered)
            record.sweep  # noqa: B018 - parses the section
        except ValueError as error:
            raise DamagedRecord(where, f"rendered or section: {error}", REMEDY) from error
        return record

    def save_trial(self, trial: Trial) -> None:
        """Write a trial's record."""
        self._put(f"trials/{trial.number:04d}.json", trial.to_json())

    def trials(self) -> list[Trial]:
        """Read the trials, by number. Raises DamagedRecord."""
        keys = self.storage.list(f"{self.key}/trials/")
        return [self._read_trial(key) for key in sorted(keys) if _TRIAL.search(key)]

    def _read_trial(self, key: str) -> Trial:
        where = place(self.storage, key)
        trial = parse_record(Trial, self.storage.get_record(key), where, REMEDY)
        if not key.endswith(f"/{trial.number:04d}.json"):
            raise DamagedRecord(where, f"number: it is of trial {trial.number}", REMEDY)
        return trial

    def load(self) -> Sweep:
        """Read the sweep with all its trials. Raises as ``read_record`` does."""
        record = self.read_record()
        section, trials = record.sweep, self.trials()
        for trial in trials:
            if any(len(result.values) != len(section.metrics) for result in trial.results):
                where = place(self.storage, f"{self.key}/trials/{trial.number:04d}.json")
                raise DamagedRecord(where, "results: not one value for each metric", REMEDY)
        return Sweep(
            record.name,
            record.job,
            section,
            record.total_images,
            trials,
            self.state(),
            record.mlflow_run_id,
            num_configurations(section) * section.seeds_per_config,
        )

    def state(self) -> str:
        """Determine the state: running, stopped, finished or orphaned.

        Takes up to 20 s if the driver is a process of another machine: its lease must expire.
        """
        if self.storage.exists(f"{self.key}/finished.json"):
            return "finished"
        if has_ended(self.storage, self.key):
            return "stopped"
        return "orphaned" if lease_expired(self.storage, self.key) else "running"

    def mark_finished(self) -> None:
        """Record that nothing is left to do."""
        self._put("finished.json", {})

    def request_stop(self) -> None:
        """Ask the driver to save all trials and end."""
        self._put("stop.json", {})

    def is_stop_requested(self) -> bool:
        """Whether someone has requested a stop."""
        return self.storage.exists(f"{self.key}/stop.json")

    def clear_stop_request(self) -> None:
        """Withdraw the request to stop, for the sweep resumes."""
        self.storage.delete(f"{self.key}/stop.json")

    def _put(self, name: str, given: Any) -> None:
        if self.fence is not None:
            self.fence.check()
        self.storage.put(f"{self.key}/{name}", json.dumps(given, indent=1).encode())


def list_sweeps(storage: Storage) -> Iterator[SweepStore]:
    """List the sweeps in a storage, newest last."""
    for parts in sorted(key.split("/") for key in storage.list(f"{FOLDER}/")):
        match parts:
            case [_, name, "sweep.json"]:
                yield SweepStore(storage, name)


def open_sweep(name_or_uri: str, storage: str) -> SweepStore:
    """Open a sweep given as its name in ``storage`` or as STORAGE/sweeps/NAME.

    Raises UsageError if it is neither.
    """
    root, separator, name = name_or_uri.rstrip("/").rpartition(f"/{FOLDER}/")
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise UsageError(
            f"{mask(name_or_uri)!r} is not a sweep; give its name, or its folder as "
            f"STORAGE/{FOLDER}/NAME"
        )
    return SweepStore(open_storage(root if separator else storage), name)
