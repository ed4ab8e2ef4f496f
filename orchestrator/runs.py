"""The records of runs in a storage, by which a lost driver's run is found and taken up again.

<storage>/<run>/run.json       what it is, written before anything else
<storage>/<run>/job.yaml       the job as resolved, without secrets
<storage>/<run>/driver.json    who drives it; changes every few seconds while someone does
<storage>/<run>/finished.json  written last
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.jobfile.flat import flat
from orchestrator.storage import NotFound, Storage

BEAT_S = 5.0
SILENT_S = 20.0
"""A driver that has written nothing for so long is lost."""
FREE = (
    "guard",
    "cluster",
    "tracking",
    "storage",
    "register",
    "data.train",
    "data.validation",
    "data.source",
    "data.threads",
    "data.memory",
    "data.cache",
    "data.patience_s",
    "data.max_bad_fraction",
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

    def announce(self, storage: Storage, job: str) -> None:
        """Write the record, and the resolved ``job`` beside it."""
        storage.put(f"{self.run}/job.yaml", job.encode())
        storage.put(self.key, json.dumps(asdict(self), indent=1).encode())

    def finish(self, storage: Storage) -> None:
        """Say that nothing of the run is left to be done."""
        storage.put(f"{self.run}/finished.json", b"{}")


def newest_unfinished(storage: Storage, job: str) -> RunRecord | None:
    """The newest run of the job called ``job`` that did not finish; None if there is none."""
    keys = set(storage.list(f"{job}-"))
    names = sorted(key.partition("/")[0] for key in keys if key.endswith("/run.json"))
    for name in reversed(names):
        if f"{name}/finished.json" in keys:
            continue
        try:
            record = RunRecord(**json.loads(storage.get(f"{name}/run.json")))
        except (ValueError, TypeError):
            continue  # of another version
        if record.job == job:
            return record
    return None


def check_same(storage: Storage, record: RunRecord, job: str, data_digest: str) -> None:
    """Raise UsageError unless ``job``, resolved, computes what the run has computed so far."""
    before = storage.get(f"{record.run}/job.yaml").decode()
    changed = differences(before, job)
    if data_digest != record.data_digest:
        changed.append(f"the training set: digest {record.data_digest[:12]} -> {data_digest[:12]}")
    if changed:
        raise UsageError(
            f"run {record.run} cannot go on with this job, which is another than it began with:\n  "
            + "\n  ".join(changed)
            + "\nundo the changes, or start a new run without --resume"
        )


def differences(before: str, after: str) -> list[str]:
    """The values that differ between two resolved jobs, but for those in FREE, a line each."""
    old, new = flat(before), flat(after)
    return [
        f"{name}: {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _is_free(name)
    ]


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


@contextmanager
def driving(storage: Storage, run: str) -> Iterator[None]:
    """Be the one driver of ``run``: write so every few seconds, and at the end that it is over.

    Raises UsageError if another driver is alive; that takes up to SILENT_S to be sure of.
    """
    key, over = f"{run}/driver.json", threading.Event()
    _refuse_a_living_driver(storage, key, run)
    me = {"host": socket.gethostname(), "pid": os.getpid()}

    def write(beat: int, *, ended: bool = False) -> None:
        storage.put(key, json.dumps({**me, "beat": beat, "ended": ended}).encode())

    def beat() -> None:
        number = 1
        while not over.wait(BEAT_S):
            number += 1
            try:
                write(number)
            except OrchestratorError:
                continue  # a store that is gone is the workers' to bear

    write(1)
    thread = threading.Thread(target=beat, name="driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT_S)
        with suppress(OrchestratorError):  # the next driver will wait until this one is silent
            write(0, ended=True)


def _refuse_a_living_driver(storage: Storage, key: str, run: str) -> None:
    try:
        first = storage.get(key)
    except NotFound:
        return
    found = json.loads(first)
    if found["ended"] or _is_dead_here(found):
        return
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        time.sleep(1)
        if storage.get(key) != first:
            raise UsageError(
                f"run {run} is being driven on {found['host']} by process {found['pid']}; "
                "stop it first, or start a new run without --resume"
            )


def _is_dead_here(found: Mapping[str, Any]) -> bool:
    """Whether the driver was a process of this machine that is no more."""
    return found["host"] == socket.gethostname() and not Path(f"/proc/{found['pid']}").exists()
