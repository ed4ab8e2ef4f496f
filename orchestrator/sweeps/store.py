"""Sweeps in a storage.

<storage>/sweeps/<name>/sweep.json          what it is, written before anything else
<storage>/sweeps/<name>/trials/0007.json    all that is known of a training, after each change
<storage>/sweeps/<name>/driver.json         who drives it: see runs.py
<storage>/sweeps/<name>/stop.json           someone wants it to stop
<storage>/sweeps/<name>/finished.json       written last

Nothing else is kept of a sweep. A driver that is killed between two writes leaves records that
are whole, each of them, and from which the next driver goes on.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.sweep import SweepSection
from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.runs.record import driver_key, ended_by_itself, is_silent
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.searchers import num_configurations

FOLDER = "sweeps"


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep is, from its first moment."""

    name: str
    job: str
    """Name of the job."""
    file_name: str
    text: str
    """The job file as given, without passwords in plain text."""
    overrides: tuple[str, ...]
    rendered: str
    """The job as resolved, without secrets."""
    section: dict[str, Any]
    """The sweep block."""
    data_digest: str
    total_images: int
    report_every: int
    """Images between two looks."""
    tracking_uri: str
    """Without its password."""
    experiment_id: str
    mlflow_run_id: str
    """The parent run's."""

    @property
    def sweep(self) -> SweepSection:
        """The sweep block."""
        return SweepSection.model_validate(self.section)


class SweepStore:
    """One sweep in a storage."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name = storage, name
        self.key = f"{FOLDER}/{name}"
        """Folder of the sweep in the storage."""

    def announce(self, record: SweepRecord) -> None:
        """Write what the sweep is."""
        self._put("sweep.json", asdict(record))

    def record(self) -> SweepRecord:
        """What the sweep is. Raises UsageError if there is none of the name."""
        try:
            given = json.loads(self.storage.get(f"{self.key}/sweep.json"))
        except NotFound:
            raise UsageError(
                f"there is no sweep {self.name} in {mask(self.storage.uri)}{self._known()}"
            ) from None
        return SweepRecord(**{**given, "overrides": tuple(given["overrides"])})

    def save(self, trial: Trial) -> None:
        """Write all that is known of a training."""
        self._put(f"trials/{trial.number:04d}.json", trial.to_json())

    def trials(self) -> list[Trial]:
        """The trainings, by number."""
        keys = sorted(self.storage.list(f"{self.key}/trials/"))
        return [Trial.from_json(json.loads(self.storage.get(key))) for key in keys]

    def sweep(self) -> Sweep:
        """The sweep and all that came of it."""
        record = self.record()
        section = record.sweep
        return Sweep(
            record.name,
            record.job,
            section,
            record.total_images,
            self.trials(),
            state=self.state(),
            tracking_uri=record.tracking_uri,
            mlflow_run_id=record.mlflow_run_id,
            num_trials=num_configurations(section) * section.seeds_per_config,
        )

    def state(self) -> str:
        """running, stopped, finished, or lost; the last may take 20 s to be sure of."""
        if self.storage.exists(f"{self.key}/finished.json"):
            return "finished"
        if not self.storage.exists(driver_key(self.key)) or ended_by_itself(self.storage, self.key):
            return "stopped"
        return "lost" if is_silent(self.storage, self.key) else "running"

    def finish(self) -> None:
        """Say that nothing is left to be done."""
        self._put("finished.json", {})

    def ask_to_stop(self) -> None:
        """Ask whoever drives the sweep to save all and end."""
        self._put("stop.json", {})

    def asked_to_stop(self) -> bool:
        """Whether someone did."""
        return self.storage.exists(f"{self.key}/stop.json")

    def forget_stop(self) -> None:
        """Take the wish back: the sweep goes on."""
        self.storage.delete(f"{self.key}/stop.json")

    def _put(self, name: str, given: Any) -> None:
        self.storage.put(f"{self.key}/{name}", json.dumps(given, indent=1).encode())

    def _known(self) -> str:
        names = [store.name for store in sweeps(self.storage)]
        return f"; it has: {', '.join(names[:8])}" if names else ", and no other one either"


def sweeps(storage: Storage) -> Iterator[SweepStore]:
    """The sweeps in a storage, newest last."""
    names = {
        key.split("/")[1]
        for key in storage.list(f"{FOLDER}/")
        if key.endswith("/sweep.json") and key.count("/") == 2
    }
    yield from (SweepStore(storage, name) for name in sorted(names))


def sweep_at(place: str, storage: str) -> SweepStore:
    """The sweep that a person names: its name in ``storage``, or STORAGE/sweeps/NAME."""
    root, found, name = place.rstrip("/").rpartition(f"/{FOLDER}/")
    return SweepStore(open_storage(root if found else storage), name)
