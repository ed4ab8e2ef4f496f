"""Lease of a run's one driver: <storage>/<run>/driver.json, renewed by a heartbeat.

A driver that ends releases its lease. If the lease expires instead, the driver died and its run is
orphaned.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import psutil
from annotated_types import Ge, Lt

from orchestrator.errors import OrchestratorError, TryAgain, UsageError
from orchestrator.periodic import Periodic
from orchestrator.record_reader import parse_format, parse_record
from orchestrator.runs.record import check_format
from orchestrator.storage.base import NotFound, Storage

FORMAT = 2
HEARTBEAT_S = 5.0
LEASE_TIMEOUT_S = 20.0
"""A lease expires after this long without a heartbeat."""
CURE = "remove it if no driver of the run is alive, or start a new run with --no-resume"
SETTLE_S = 0.5
"""If several drivers claim an expired lease at once, all see after this long who wrote last."""


@dataclass(frozen=True)
class _Lease:
    """Content of driver.json."""

    host: str
    pid: Annotated[int, Ge(0), Lt(1 << 31)]
    id: str
    heartbeat: int
    ended: bool
    stopping: bool


class DriverLease:
    """Lease of a run's one driver. Use ``hold_lease`` to take it."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage, self._run = storage, run
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self._num_heartbeats, self._stopping, self._ended = 0, False, False
        self.heartbeat = Periodic(
            self._renew, HEARTBEAT_S, name="driver-lease", delay=True, join_timeout_s=HEARTBEAT_S
        )

    def mark_stopping(self) -> None:
        """Record soon that someone stops the run: if it ends now, it is not orphaned.

        A signal handler may call this: it waits for nothing.
        """
        self._stopping = True
        self.heartbeat.wake()

    def acquire(self, *, expired: bool) -> None:
        """Write the lease. Several drivers may claim an ``expired`` one at once.

        Raises TryAgain if another driver claimed it later and has it now.
        """
        self._write()
        if expired:
            time.sleep(SETTLE_S)
            found = _read(self._storage, self._run)
            if found is not None and _parse(self._run, found)["id"] != self._holder["id"]:
                raise TryAgain(
                    f"another driver resumed run {self._run} at the same moment; try again to "
                    "start a new run"
                )

    def release(self) -> None:
        """Record that the driver has ended."""
        self._ended = True
        self._renew()  # if it fails, the next driver waits until the lease expires

    def _renew(self) -> None:
        with suppress(OrchestratorError):  # if the storage is gone, the workers handle it
            self._write()

    def _write(self) -> None:
        self._num_heartbeats += 1
        lease = {
            "format": FORMAT,
            **self._holder,
            "heartbeat": self._num_heartbeats,
            "ended": self._ended,
            "stopping": self._stopping,
        }
        self._storage.put(lease_key(self._run), json.dumps(lease).encode())


@contextmanager
def hold_lease(
    storage: Storage, run: str, last_heartbeat: bytes | None = None
) -> Iterator[DriverLease]:
    """Hold the driver's lease of ``run`` within the block.

    Args:
        last_heartbeat: what ``find_expired_lease`` returned; that lease is not checked again.

    Raises:
        UsageError: another driver is alive; to know that takes up to LEASE_TIMEOUT_S.
        TryAgain: another driver claimed the lease at the same moment.
    """
    found = _read(storage, run)
    held = None if found is None else _parse(run, found)
    is_open = held is not None and not held["ended"]
    if held is not None and is_open and found != last_heartbeat and not lease_expired(storage, run):
        raise UsageError(
            f"run {run} already has a driver, process {held['pid']} on {held['host']}; "
            "stop it first, or start a new run with --no-resume"
        )
    lease = DriverLease(storage, run)
    lease.acquire(expired=is_open)
    try:
        with lease.heartbeat:
            yield lease
    finally:
        lease.release()


def lease_key(run: str) -> str:
    """Key of the lease of ``run`` in the storage."""
    return f"{run}/driver.json"


def has_ended(storage: Storage, run: str) -> bool:
    """Whether the last driver of ``run`` ended or was asked to stop; true if it never had one."""
    if (found := _read(storage, run)) is None:
        return True
    lease = _parse(run, found)
    return bool(lease["ended"] or lease["stopping"])


def find_expired_lease(storage: Storage, run: str) -> bytes | None:
    """Return the last heartbeat of the driver of ``run`` if the run is orphaned, else None.

    Takes as long as ``lease_expired``.
    """
    found = _read(storage, run)
    if found is None or has_ended(storage, run) or not lease_expired(storage, run):
        return None
    return found if _read(storage, run) == found else None


def lease_expired(storage: Storage, run: str) -> bool:
    """Whether the driver of ``run``, which has not ended, is dead or sends no heartbeat.

    Takes up to LEASE_TIMEOUT_S, unless the driver was a process on this machine.
    """
    first = storage.get(lease_key(run))
    driver = _parse(run, first)
    if driver["host"] == socket.gethostname() and not psutil.pid_exists(int(driver["pid"])):
        return True
    deadline = time.monotonic() + LEASE_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(1)
        if storage.get(lease_key(run)) != first:
            return False
    return True


def _read(storage: Storage, run: str) -> bytes | None:
    try:
        return storage.get_record(lease_key(run))
    except NotFound:
        return None


def _parse(run: str, content: bytes) -> dict[str, Any]:
    """Parse a lease.

    Raises DamagedRecord, or UsageError if another version of the orchestrator wrote it.
    """
    key = lease_key(run)
    check_format(key, parse_format(content, key, CURE, 1), FORMAT)
    return asdict(parse_record(_Lease, content, key, CURE))
