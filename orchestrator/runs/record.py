"""The records of runs in a storage, by which a lost driver's run is found and taken up again.

<storage>/<run>/run.json       what it is, written before anything else
<storage>/<run>/job.yaml       the job as resolved, without secrets
<storage>/<run>/driver.json    who drives it; changes every few seconds while someone does
<storage>/<run>/usage/         what its workers used, see costs.py
<storage>/<run>/finished.json  written last
"""

import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, TryAgain, UsageError
from orchestrator.redaction import mask
from orchestrator.storage.base import NotFound, Storage

BEAT_S = 5.0
SILENT_S = 20.0
"""A driver that has written nothing for so long is lost."""
SETTLE_S = 0.5
"""After so long, of two drivers that take up a lost run at once, all see whose words stand."""
FREE = (
    "guard",
    "cluster",
    "cost",
    "tracking",
    "storage",
    "register",
    "data.train",
    "data.validation",
    "data.source",
    "data.threads",
    "data.prefetch_memory",
    "data.cache",
    "data.retry_timeout_s",
    "data.max_corrupt_fraction",
    "train.microbatch_size",
    "train.compile",
    "train.channels_last",
    "train.log_every",
    "train.checkpoint_every",
    "train.sample_every",
    "train.validate_every",
)
"""What may change when a run goes on: where and how it runs, not what it computes. The training
set is compared by its digest. The guard only acts once a training is astray, and such a run is to
go on with another."""


@dataclass(frozen=True)
class RunRecord:
    """What the storage knows of a run."""

    run: str
    """Name of the run, and of its folder in the storage."""
    job: str
    mlflow_run_id: str
    experiment_id: str
    data_digest: str

    @property
    def key(self) -> str:
        """Where the record is."""
        return f"{self.run}/run.json"

    @classmethod
    def read(cls, storage: Storage, run: str) -> "RunRecord":
        """The record of ``run``. Raises NotFound; ValueError or TypeError if it is another kind."""
        return cls(**json.loads(storage.get(f"{run}/run.json")))

    def announce(self, storage: Storage, job: str) -> None:
        """Write the record, and the resolved ``job`` beside it."""
        storage.put(f"{self.run}/job.yaml", job.encode())
        storage.put(self.key, json.dumps(asdict(self), indent=1).encode())

    def finish(self, storage: Storage) -> None:
        """Say that nothing of the run is left to be done."""
        storage.put(f"{self.run}/finished.json", b"{}")


def unfinished(storage: Storage, job: str) -> Iterator[RunRecord]:
    """The runs of the job called ``job`` that did not finish, newest first."""
    keys = set(storage.list(f"{job}-"))
    names = sorted(key.partition("/")[0] for key in keys if key.endswith("/run.json"))
    for name in reversed(names):
        if f"{name}/finished.json" in keys:
            continue
        try:
            record = RunRecord.read(storage, name)
        except (ValueError, TypeError):
            continue  # of another version
        if record.job == job:
            yield record


def newest_unfinished(storage: Storage, job: str) -> RunRecord | None:
    """The newest run of the job called ``job`` that did not finish; None if there is none."""
    return next(unfinished(storage, job), None)


def changes(storage: Storage, record: RunRecord, job: str, data_digest: str) -> list[str]:
    """What ``job``, resolved, computes otherwise than the run has so far, a line each."""
    before = storage.get(f"{record.run}/job.yaml").decode()
    changed = differences(before, job)
    if data_digest != record.data_digest:
        changed.append(f"the training set: digest {record.data_digest[:12]} -> {data_digest[:12]}")
    return changed


def check_same(storage: Storage, record: RunRecord, job: str, data_digest: str) -> None:
    """Raise UsageError unless ``job``, resolved, computes what the run has computed so far."""
    changed = changes(storage, record, job, data_digest)
    if changed:
        raise UsageError(
            f"run {record.run} cannot go on with this job, which is another than it began with:\n  "
            + "\n  ".join(changed)
            + "\nundo the changes, or start a new run: from this one's newest checkpoint with "
            f"--init-from {mask(storage.uri)}/{record.run}, or from the beginning with --no-resume"
        )


def differences(before: str, after: str) -> list[str]:
    """The values that differ between two resolved jobs, but for those in FREE, a line each."""
    from orchestrator.config.flatten import flat  # with it comes torch

    old, new = flat(before), flat(after)
    return [
        f"{name}: {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _is_free(name)
    ]


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


class Driver:
    """The one driver of a run: writes every few seconds that it is there, until it ends."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage, self._key, self._run = storage, driver_key(run), run
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self._stopping, self._over, self._early = False, False, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="driver", daemon=True)

    def stopping(self) -> None:
        """Write soon that someone stops the run: what ends it now is no accident.

        Signal handlers call it: it waits for nothing.
        """
        self._stopping = True
        self._early.set()

    def begin(self, *, after_another: bool) -> None:
        """Take the place. ``after_another`` that was lost, someone else may do so just now.

        Raises TryAgain if so.
        """
        self._write(1)
        if after_another:
            time.sleep(SETTLE_S)
            found = _read(self._storage, self._run)
            if found is not None and json.loads(found).get("id") != self._me["id"]:
                raise TryAgain(
                    f"another driver takes up run {self._run} just now; try again, and a run of "
                    "its own is started"
                )
        self._thread.start()

    def end(self) -> None:
        """Write that it is over."""
        self._over = True
        self._early.set()
        self._thread.join(BEAT_S)
        with suppress(OrchestratorError):  # the next driver will wait until this one is silent
            self._write(0, ended=True)

    def _beat(self) -> None:
        for number in itertools.count(2):
            self._early.wait(BEAT_S)
            self._early.clear()
            if self._over:
                return
            with suppress(OrchestratorError):  # a store that is gone is the workers' to bear
                self._write(number)

    def _write(self, beat: int, *, ended: bool = False) -> None:
        now = {"beat": beat, "ended": ended, "stopping": self._stopping}
        self._storage.put(self._key, json.dumps({**self._me, **now}).encode())


@contextmanager
def driving(storage: Storage, run: str, silent: bytes | None = None) -> Iterator[Driver]:
    """Be the one driver of ``run``: write so every few seconds, and at the end that it is over.

    Args:
        silent: what ``lost`` gave; that driver needs no second look.

    Raises:
        UsageError: another driver is alive; that takes up to SILENT_S to be sure of.
        TryAgain: another one takes the run up in this moment.
    """
    before = _read(storage, run)
    open_end = before is not None and not json.loads(before)["ended"]
    if before is not None and open_end and before != silent and not is_silent(storage, run):
        found = json.loads(before)
        raise UsageError(
            f"run {run} is being driven on {found['host']} by process {found['pid']}; "
            "stop it first, or start a new run with --no-resume"
        )
    driver = Driver(storage, run)
    driver.begin(after_another=open_end)
    try:
        yield driver
    finally:
        driver.end()


def driver_key(run: str) -> str:
    """Where the driver of ``run`` writes."""
    return f"{run}/driver.json"


def ended_by_itself(storage: Storage, run: str) -> bool:
    """Whether the last driver of ``run`` ended it, or was told to stop; also if none is known."""
    last = _read(storage, run)
    if last is None:
        return True
    found = json.loads(last)
    return bool(found["ended"] or found.get("stopping"))


def lost(storage: Storage, run: str) -> bytes | None:
    """The last words of the driver of ``run`` if it has not ended and beats no more, else None.

    That takes up to SILENT_S to be sure of, unless it was a process of this machine.
    """
    last = _read(storage, run)
    if last is None or ended_by_itself(storage, run) or not is_silent(storage, run):
        return None
    return last if _read(storage, run) == last else None


def _read(storage: Storage, run: str) -> bytes | None:
    try:
        return storage.get(driver_key(run))
    except NotFound:
        return None


def is_silent(storage: Storage, run: str) -> bool:
    """Whether the driver of ``run``, which has not ended, is dead or writes nothing more."""
    first = storage.get(driver_key(run))
    if _is_dead_here(json.loads(first)):
        return True
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        time.sleep(1)
        if storage.get(driver_key(run)) != first:
            return False
    return True


def _is_dead_here(found: Mapping[str, Any]) -> bool:
    """Whether the driver was a process of this machine that is no more."""
    return found["host"] == socket.gethostname() and not Path(f"/proc/{found['pid']}").exists()
