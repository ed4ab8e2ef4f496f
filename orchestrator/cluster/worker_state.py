"""State of a worker group, shared by the workers, the controller and the driver.

It imports little, so that its actor starts at once.
"""

import pickle
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from orchestrator.cluster.failure_policy import Cause, Decision, Failure
from orchestrator.errors import OrchestratorError

STOP = "stop"
"""Action requested of the workers when someone stops the run."""
HEARTBEAT_TIMEOUT_S = 25.0
"""A rank without a heartbeat for this long is stopped or swapped out; one comes every second."""
ENDED = "ended"
"""Last activity of a rank; others may still be writing the checkpoint."""


@dataclass(frozen=True)
class Heartbeat:
    """Heartbeat of one rank."""

    world_size: int
    node_id: str
    host: str
    pid: int
    activity: str
    activity_s: float
    """Seconds since the activity began."""
    num_steps: int
    """Steps that this process has begun."""
    longest_step_s: float
    """Longest step after the first, which compiles and allocates."""
    placement_group: Any = None
    """Ray's placement group of the workers."""
    checkpoint_at: float | None = None
    """Time of its newest commit of a checkpoint, by its own clock; on rank 0."""
    gpu_bytes: int = 0
    """GPU memory that the process holds."""
    attempt: int = 0
    """Number of the worker group: how many groups of this run failed before it."""
    age_s: float = 0.0
    """Seconds since it arrived, when it is read."""


@dataclass
class WorkerGroupStatus:
    """Newest status of a worker group."""

    report: dict[str, Any] | None = None
    """Fields of the newest progress report, from rank 0."""
    unread_reports: list[dict[str, Any]] = field(default_factory=list)
    outcome: dict[str, Any] | None = None
    """Fields of the Outcome, from rank 0, once training has ended."""
    error: OrchestratorError | None = None
    """An error that no retry can fix."""
    messages: list[str] = field(default_factory=list)
    """Messages for the user, in the order of arrival."""
    heartbeats: dict[int, Heartbeat] = field(default_factory=dict)
    """By rank, of the current worker group."""
    failures: list[Failure] = field(default_factory=list)
    decision: Decision | None = None
    """The last decision after a failure."""


class Memory(Protocol):
    """Bytes that outlive the actor's process, such as ray_compat.ClusterMemory."""

    def save(self, content: bytes) -> None:
        """Replace the bytes."""

    def load(self) -> bytes | None:
        """Return the bytes; None before the first ``save``."""


class WorkerGroupState:
    """Actor that holds the status of the worker group and outlives restarts of the workers.

    If its own process is lost, Ray starts it again. It finds what it must know in its memory; the
    workers send their heartbeats again anyway.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory
        self._status = WorkerGroupStatus()
        self._requested_action: str | None = None
        self._stuck: str | None = None
        self._arrivals: dict[int, float] = {}
        self._unread_reports: list[dict[str, Any]] = []
        self._num_read: int | None = 0
        saved = None if memory is None else memory.load()
        if saved is not None:
            self._status, self._requested_action, self._stuck = pickle.loads(saved)
            self._num_read = None
            self._status.messages.append(
                "restart: the actor with the status of the workers was lost; the workers go on"
            )
        self._save()

    def _save(self) -> None:
        """Save all but what the workers send again: heartbeats and progress."""
        if self._memory is not None:
            status = replace(self._status, report=None, heartbeats={})
            self._memory.save(pickle.dumps((status, self._requested_action, self._stuck)))

    def update(self, **fields: Any) -> None:
        """Replace fields of the status."""
        for name, value in fields.items():
            setattr(self._status, name, value)
        if "report" in fields:
            self._unread_reports.append(fields["report"])
        else:
            self._save()

    def add_message(self, text: str) -> None:
        """Keep a message that the driver shows to the user."""
        self._status.messages.append(text)
        self._save()

    def heartbeat(self, rank: int, heartbeat: Heartbeat) -> str | None:
        """Store a heartbeat and return the requested action; see ``request``.

        Ray ends the workers of a failed group some time after its failure. What they still send
        would later look like stuck workers of the next group, so it is dropped.
        """
        if heartbeat.attempt != len(self._status.failures):
            return None
        self._status.heartbeats[rank] = heartbeat
        self._arrivals[rank] = time.monotonic()
        return self._requested_action

    def request(self, action: str | None) -> None:
        """Request that the workers save and exit: ``STOP``, or a Cause to be restarted for."""
        if action != self._requested_action:
            self._requested_action = action
            self._save()

    def requested_action(self) -> str | None:
        """Return the action that is requested of the workers now."""
        return self._requested_action

    def mark_stuck(self, message: str) -> None:
        """Note that the driver kills a stuck worker: the next failure is due to that."""
        self._stuck = message
        self._save()

    def record_failure(self, failure: Failure) -> list[Failure]:
        """Record the end of a worker group, reset for the next one and return all failures."""
        if self._stuck is not None:
            failure = replace(failure, cause=Cause.HUNG, message=self._stuck)
            self._stuck = None
        self._status.failures.append(failure)
        self._status.heartbeats, self._arrivals = {}, {}
        if self._requested_action != STOP:
            self._requested_action = None
        self._save()
        return self._status.failures

    def failures(self) -> list[Failure]:
        """Return the failures of earlier worker groups, for a worker that starts.

        The whole status would bring the heartbeats of n * n / 2 workers to n workers.
        """
        return self._status.failures

    def read_new(self, num_reports: int, num_messages: int) -> WorkerGroupStatus:
        """Return the status with the reports and messages after those that its one reader has."""
        if self._num_read is not None:  # else an earlier process of this actor counted them
            del self._unread_reports[: num_reports - self._num_read]
        self._num_read = num_reports
        messages = self._status.messages[num_messages:]
        return replace(self.read(), unread_reports=list(self._unread_reports), messages=messages)

    def read(self) -> WorkerGroupStatus:
        """Return the status without the reports before the newest."""
        now = time.monotonic()
        heartbeats = {
            rank: replace(heartbeat, age_s=now - self._arrivals[rank])
            for rank, heartbeat in self._status.heartbeats.items()
        }
        return replace(self._status, heartbeats=heartbeats)
