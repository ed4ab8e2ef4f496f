"""Lease of a run's one driver: <storage>/<run>/drivers/<term>.json, renewed by a heartbeat.

A driver that ends releases its lease. If the lease expires instead, the driver died and its run is
orphaned. So is that of a driver that a transient failure interrupted, which says so in its lease.

Each driver has a term, which is one more than that of the driver before it. It takes the term by
creating the term's file, which only one of several drivers can do, and writes to that file alone.
So a driver that was suspended while another one took over cannot bring its own lease back, and it
learns from the file of the next term that it was superseded: see Fence.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import psutil
from annotated_types import Ge, Lt

from orchestrator.errors import OrchestratorError, Superseded, TryAgain, UsageError
from orchestrator.periodic import Periodic
from orchestrator.record_reader import parse_format, parse_record
from orchestrator.runs.record import FINISHED, check_format
from orchestrator.storage.base import NotFound, Storage

FORMAT = 2
HEARTBEAT_S = 5.0
LEASE_TIMEOUT_S = 20.0
"""A lease expires after this long without a heartbeat."""
STALE_S = 5.0
"""An answer that took longer may be older than a takeover: this process may have been suspended."""
REMEDY = "remove it if no driver of the run is alive, or start a new run with --no-resume"


@dataclass(frozen=True)
class Fence:
    """Keeps a driver that was superseded, and its workers, from writing to the run.

    Picklable. ``check`` comes right before each write that another driver would not expect: the
    commit of a checkpoint, a batch of metrics, a registration.
    """

    storage: Storage
    run: str
    term: int
    predecessor_may_live: bool = False
    """Whether this driver took over because it heard nothing of the one before it."""

    def is_lost(self) -> bool:
        """Return whether another driver has taken over. Raises as Storage.size."""
        return self.storage.exists(lease_key(self.run, self.term + 1))

    def check(self) -> None:
        """Raise Superseded if another driver has taken over. Raises as Storage.size, too."""
        # Unlike that of time.monotonic, this clock runs while a laptop sleeps.
        asked_at = time.time()
        is_lost = self.is_lost()
        if is_lost or (abs(time.time() - asked_at) > STALE_S and self.is_lost()):
            raise self.superseded()

    def superseded(self) -> Superseded:
        """Return the error of a driver that was superseded."""
        return Superseded(
            f"another driver has taken over {self.run}: this one ends, and what it did since then "
            "is not kept"
        )


@dataclass(frozen=True)
class _Lease:
    """Content of a lease."""

    host: str
    pid: Annotated[int, Ge(0), Lt(1 << 31)]
    id: str
    heartbeat: int
    ended: bool
    stopping: bool
    interrupted: bool = False


class DriverLease:
    """Lease of a run's one driver. Use ``hold_lease`` to take it."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self.superseded = False
        """Whether it is known that another driver has taken over; reading it waits for nothing."""
        self.on_superseded: Callable[[], None] = lambda: None
        """Called, in the thread of the heartbeat, when another driver has taken over."""
        self._storage, self._run = fence.storage, fence.run
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self._num_heartbeats, self._stopping, self._ended = 0, False, False
        self._interrupted = False
        self.heartbeat = Periodic(
            self._renew, HEARTBEAT_S, name="driver-lease", delay=True, join_timeout_s=HEARTBEAT_S
        )

    def is_superseded(self) -> bool:
        """Look whether another driver has taken over; if the storage is silent, what is known."""
        with suppress(OrchestratorError):
            self.superseded = self.superseded or self.fence.is_lost()
        return self.superseded

    def mark_stopping(self) -> None:
        """Record soon that someone stops the run: if it ends now, it is not orphaned.

        A signal handler may call this: it waits for nothing.
        """
        self._stopping = True
        self.heartbeat.wake()

    def acquire(self) -> None:
        """Create the file of the term. Raises TryAgain if another driver has created it."""
        if not self._storage.put_if_absent(lease_key(self._run, self.fence.term), self._content()):
            raise TryAgain(
                f"another driver resumed run {self._run} at the same moment; try again to start a "
                "new run"
            )

    def release(self, *, interrupted: bool = False) -> None:
        """Record that the driver has ended; ``interrupted`` leaves the run orphaned."""
        self._ended, self._interrupted = True, interrupted
        self._renew()  # if it fails, the next driver waits until the lease expires

    def _renew(self) -> None:
        with suppress(OrchestratorError):  # if the storage is gone, the workers handle it
            self._storage.put(lease_key(self._run, self.fence.term), self._content())
        if not self._ended and self.is_superseded():
            self.on_superseded()

    def _content(self) -> bytes:
        self._num_heartbeats += 1
        lease = {
            "format": FORMAT,
            **self._holder,
            "heartbeat": self._num_heartbeats,
            "ended": self._ended,
            "stopping": self._stopping,
            "interrupted": self._interrupted,
        }
        return json.dumps(lease).encode()


@contextmanager
def hold_lease(
    storage: Storage,
    run: str,
    last_heartbeat: bytes | None = None,
    *,
    must_be_unfinished: bool = False,
) -> Iterator[DriverLease]:
    """Hold the driver's lease of ``run`` within the block.

    Args:
        last_heartbeat: what ``find_expired_lease`` returned; that lease is not checked again.
        must_be_unfinished: refuse a run that another driver has finished since it was found.

    Raises:
        UsageError: another driver is alive; to know that takes up to LEASE_TIMEOUT_S.
        TryAgain: another driver took the lease at the same moment.
        Superseded: another driver has finished the run, or takes over within the block.
    """
    term, found = _newest(storage, run)
    held = None if found is None else _parse(run, term, found)
    is_open = held is not None and not held["ended"]
    if held is not None and is_open and found != last_heartbeat and not lease_expired(storage, run):
        raise UsageError(
            f"run {run} already has a driver, process {held['pid']} on {held['host']}; "
            "stop it first, or start a new run with --no-resume"
        )
    may_live = held is not None and is_open and not _is_gone(held)
    lease = DriverLease(Fence(storage, run, term + 1, may_live))
    lease.acquire()
    interrupted = False
    try:
        if must_be_unfinished and storage.exists(f"{run}/{FINISHED}"):
            raise Superseded(f"another driver has finished {run} meanwhile: nothing is left to do")
        with lease.heartbeat:
            yield lease
    except BaseException as error:
        interrupted = isinstance(error, OrchestratorError) and error.retry
        if isinstance(error, Superseded) or not lease.is_superseded():
            raise
        raise lease.fence.superseded() from error  # which explains what `error` only follows from
    finally:
        lease.release(interrupted=interrupted)


def lease_key(run: str, term: int) -> str:
    """Key of the lease of the driver with this ``term`` of ``run`` in the storage.

    A run of version 0.2 has its only lease in driver.json, which counts as term 0.
    """
    return f"{run}/drivers/{term:06d}.json" if term else f"{run}/driver.json"


def has_ended(storage: Storage, run: str) -> bool:
    """Whether the last driver of ``run`` ended or was asked to stop; true if it never had one.

    False if it was interrupted by a transient failure: whoever runs the job again resumes the run.
    """
    term, found = _newest(storage, run)
    if found is None:
        return True
    lease = _parse(run, term, found)
    return bool(lease["stopping"] or (lease["ended"] and not lease["interrupted"]))


def read_drivers(storage: Storage, run: str) -> list[str]:
    """Return how each driver of ``run`` ended, oldest first; the last one may be "alive".

    Others are "ended", "stopped", "interrupted" by a transient failure, "died", or "silent" if that
    cannot be told from here. Raises as ``has_ended`` does.
    """
    prefix = f"{run}/drivers/"
    terms = sorted(int(s) for k in storage.list(prefix) if (s := k[len(prefix) : -5]).isdigit())
    leases = [(term, _parse(run, term, storage.get_record(lease_key(run, term)))) for term in terms]
    return [_state(lease, is_last=term == terms[-1]) for term, lease in leases]


def _state(lease: dict[str, Any], *, is_last: bool) -> str:
    if lease["interrupted"]:
        return "interrupted"
    if lease["stopping"]:
        return "stopped"
    if lease["ended"]:
        return "ended"
    if not is_last or _is_gone(lease):  # another driver took over
        return "died"
    return "alive" if lease["host"] == socket.gethostname() else "silent"


def find_expired_lease(storage: Storage, run: str) -> bytes | None:
    """Return the last heartbeat of the driver of ``run`` if the run is orphaned, else None.

    Takes as long as ``lease_expired``.
    """
    found = _newest(storage, run)[1]
    if found is None or has_ended(storage, run) or not lease_expired(storage, run):
        return None
    return found if _newest(storage, run)[1] == found else None


def lease_expired(storage: Storage, run: str) -> bool:
    """Whether the driver of ``run`` was interrupted, is dead or sends no heartbeat.

    Takes up to LEASE_TIMEOUT_S, unless it was interrupted or was a process on this machine.
    """
    term, first = _newest(storage, run)
    assert first is not None, "a run with a driver has a lease"
    driver = _parse(run, term, first)
    if driver["ended"] or _is_gone(driver):
        return True
    deadline = time.monotonic() + LEASE_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(1)
        if _newest(storage, run) != (term, first):
            return False
    return True


def _is_gone(driver: dict[str, Any]) -> bool:
    """Whether the driver was a process of this machine that has ended."""
    return driver["host"] == socket.gethostname() and not psutil.pid_exists(int(driver["pid"]))


def _newest(storage: Storage, run: str) -> tuple[int, bytes | None]:
    """Read the lease with the highest term; (0, None) if ``run`` never had a driver."""
    keys = storage.list(f"{run}/drivers/")
    terms = [int(stem) for key in keys if (stem := key.rpartition("/")[2][:-5]).isdigit()]
    newest = max(terms, default=0)
    try:
        return newest, storage.get_record(lease_key(run, newest))
    except NotFound:
        return 0, None


def _parse(run: str, term: int, content: bytes) -> dict[str, Any]:
    """Parse a lease.

    Raises DamagedRecord, or UsageError if another version of the orchestrator wrote it.
    """
    key = lease_key(run, term)
    check_format(key, parse_format(content, key, REMEDY, 1), FORMAT)
    return asdict(parse_record(_Lease, content, key, REMEDY))
