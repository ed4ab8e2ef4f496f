"""Send later what MLflow lacks of a run: from this machine's spool and from the run's storage."""

import difflib
import re
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from orchestrator import tracking
from orchestrator.config.paths import sqlite_path
from orchestrator.errors import UsageError
from orchestrator.private_folder import existing_private_folder, private_folder
from orchestrator.redaction import mask
from orchestrator.runs.lease import has_ended, lease_expired
from orchestrator.runs.record import RunRecord
from orchestrator.runs.unsent import UnsentRecords
from orchestrator.storage.base import NotFound, Storage, validate_key
from orchestrator.tracking.run_history import read_spool
from orchestrator.tracking.spool import Record, Spool

MAX_NAME = 255
"""Most characters of a run's name."""


@dataclass(frozen=True)
class Replayed:
    """What ``replay_run`` sent."""

    num_records: int
    num_from_storage: int
    """Those that only the run's storage had."""


def spool_folder(name: str) -> Path:
    """Return the folder of this machine for the unsent records of the run called ``name``."""
    parent = Path(tempfile.gettempdir())
    try:
        private = private_folder("orchestrator", parent)
    except OSError:  # a full disk; nobody can create a folder of this name before the spool does
        private = parent / f"orchestrator-{uuid.uuid4().hex}"
    return private / "spool" / name


def replay_command(name: str, storage: str, tracking_uri: str) -> str:
    """Return the command that sends what MLflow lacks of the run called ``name``, from anywhere."""
    return (
        f"orchestrator tracking replay {quote(name)} --storage {quote(mask(storage))} "
        f"--tracking-uri {quote(mask(tracking_uri))}"
    )


def replay_run(name: str, storage: Storage, tracking_uri: str) -> Replayed:
    """Send what MLflow lacks of the run called ``name``, each record once, and delete it.

    Args:
        storage: of the run's job.
        tracking_uri: absolute.

    Raises:
        UsageError: there is no such run, or it is training.
        EnvironmentProblem: MLflow is out of reach; what is not sent yet is kept.
    """
    if (database := sqlite_path(tracking_uri)) is not None and not database.exists():
        raise UsageError(
            f"there is no MLflow database at {database}; give the tracking URI of the run's job "
            "with --tracking-uri"
        )
    if not is_possible_name(name):
        raise unknown_run(name, storage)
    try:
        record = RunRecord.read(storage, name)
    except NotFound:
        record = None  # it may have died before its record was written
    local = _newest_spool(spool_folder(name))
    found = [record.mlflow_run_id] if record else _spooled_ids(local)
    if len(found) != 1:
        raise unknown_run(name, storage)
    if record is not None and not has_ended(storage, name) and not lease_expired(storage, name):
        raise UsageError(f"run {name} is training, and sends its records itself")
    spool = Spool(local / found[0])
    unsent = UnsentRecords(storage, name, found[0], spool)
    num_from_storage = unsent.restore()
    num_records = spool.num_unsent()
    spool.close()
    run = tracking.RunRef(tracking_uri, record.experiment_id if record else "", found[0])
    tracking.replay(run, local)
    unsent.delete()
    return Replayed(num_records, num_from_storage)


def is_possible_name(name: str) -> bool:
    """Whether a run may have this name."""
    try:
        return len(validate_key(name)) <= MAX_NAME
    except ValueError:
        return False


def local_records(name: str, mlflow_run_id: str) -> list[Record]:
    """Read what the newest driver of a run has logged on this machine, sent or not.

    It may be logging. Changes nothing; empty if no driver of the run is or was here.
    """
    private = existing_private_folder("orchestrator", Path(tempfile.gettempdir()))
    if private is None:
        return []
    return read_spool(_newest_spool(private / "spool" / name) / mlflow_run_id)


def _newest_spool(folder: Path) -> Path:
    """Return the folder of the run's last driver here; recording.own_spool names it.

    ``folder`` is what ``spool_folder`` returns.
    """
    by_term = {
        int(path.name.rpartition(".")[2]): path
        for path in folder.parent.glob("*.*")
        if path.name.rpartition(".")[0] == folder.name and path.name.rpartition(".")[2].isdigit()
    }
    return by_term[max(by_term)] if by_term else folder


def _spooled_ids(local: Path) -> list[str]:
    """List the MLflow runs with records in a run's spool folder."""
    return [path.parent.name for path in local.glob("*/records.jsonl")]


def unknown_run(name: str, storage: Storage) -> UsageError:
    """Make the error for a run that nothing is known of, with near names."""
    known = {key.removesuffix("/run.json") for key in storage.list() if key.endswith("/run.json")}
    spools = spool_folder("x").parent
    known |= {
        re.sub(r"\.\d+$", "", str(path.parent.parent.relative_to(spools)))
        for path in spools.rglob("*/records.jsonl")
    }
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listed = f" Known runs: {', '.join(sorted(known)[-8:])}." if known else " No run is known."
    return UsageError(
        f"there is no run {name!r} in {mask(storage.uri)}, nor records of one on this machine"
        f"{hint or '.'}{listed} Give the storage of its job with --storage"
    )
