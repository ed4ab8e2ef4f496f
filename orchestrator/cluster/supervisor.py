"""Driver's thread beside a run: show progress, kill stuck workers, move and resize the group."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from orchestrator.cluster.failure_policy import Cause
from orchestrator.cluster.hang_detection import StuckWorker, find_stuck, kill_on_node
from orchestrator.cluster.ray_compat import draining_nodes, free_resources_of_nodes
from orchestrator.cluster.ray_session import resources_of
from orchestrator.cluster.worker_state import STOP, Heartbeat, WorkerGroupStatus
from orchestrator.config.job import ClusterSection
from orchestrator.console import ProgressReport, log_info
from orchestrator.periodic import Periodic

POLL_S = 0.5
NODE_POLL_S = 1.0
"""Seconds between two checks for draining and for new nodes."""
RESIZE_DELAY_S = 10.0
"""Room for more workers must last this long, so that several new nodes cost one restart."""


class Supervisor:
    """Supervises the workers of one run from the driver."""

    def __init__(
        self,
        state: Any,
        cluster: ClusterSection,
        report: Callable[[ProgressReport], None],
        on_status: Callable[[WorkerGroupStatus], None],
    ) -> None:
        """Set up for the actor ``state`` of type WorkerGroupState.

        ``report`` is called with each progress report, ``on_status`` with each status.
        """
        self._state, self._cluster = state, cluster
        self._report, self._on_status = report, on_status
        self._periodic = Periodic(self._poll, POLL_S, name="supervisor", at_end=True)
        self._closing = False
        self._requested: str | None = None
        self._num_messages = self._num_reports = 0
        self._nodes_checked = 0.0
        self._killed: set[int] = set()
        """Process ids of stuck workers that were killed."""
        self._room_since: float | None = None
        self._resize_delay_s = RESIZE_DELAY_S
        self.has_workers = False
        """Whether workers train that can be asked to stop."""
        self.loss: ray.exceptions.ActorDiedError | None = None
        """Set once the actor ``state`` is lost for good."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Supervise until the block ends."""
        with self._periodic:
            try:
                yield
            finally:
                self._closing = True

    def request_stop(self) -> None:
        """Ask the workers to save and exit after this step; a signal handler may call it."""
        self._requested = STOP
        self._periodic.wake()

    def _poll(self) -> None:
        try:
            self._check()
        except ray.exceptions.ActorDiedError as error:  # started again too often
            self.loss = error
        except ray.exceptions.RayError:
            pass  # it is started again, or is busy

    def _check(self) -> None:
        closing = self._closing  # once more at the end: the last reports count too
        if self._requested == STOP and not closing:
            ray.get(self._state.request.remote(STOP), timeout=2)
        unread = self._state.read_new.remote(self._num_reports, self._num_messages)
        status: WorkerGroupStatus = ray.get(unread, timeout=2)
        self._show(status)
        if not closing and self._requested != STOP:
            self._check_workers(status)

    def _show(self, status: WorkerGroupStatus) -> None:
        self._on_status(status)
        for message in status.messages:
            log_info(message)
        self._num_messages += len(status.messages)
        self.has_workers = any(heartbeat.num_steps for heartbeat in status.heartbeats.values())
        for report in status.unread_reports:
            self._report(ProgressReport(**report))
        self._num_reports += len(status.unread_reports)

    def _check_workers(self, status: WorkerGroupStatus) -> None:
        heartbeats = status.heartbeats
        stuck = find_stuck(heartbeats, self._cluster.hang_timeout_s)
        if stuck is not None and heartbeats[stuck.rank].pid not in self._killed:
            self._kill(stuck, heartbeats[stuck.rank])
        now = time.monotonic()
        if now - self._nodes_checked < NODE_POLL_S:
            return
        self._nodes_checked = now
        if not self.has_workers:  # the next worker group starts, which may be asked again
            self._requested = None
            return
        draining = draining_nodes()
        if leaving := {one.host for one in heartbeats.values() if one.node_id in draining}:
            reason = f"{', '.join(sorted(leaving))} is to be taken away"
            self._request_restart(Cause.PREEMPTED, reason)
        elif self._has_room(next(iter(heartbeats.values())).world_size, draining, now):
            self._request_restart(Cause.RESIZED, "another worker has room")

    def _request_restart(self, cause: Cause, reason: str) -> None:
        if self._requested == cause:
            return
        log_info(f"{reason}: the workers save this step and restart")
        ray.get(self._state.request.remote(cause.value), timeout=2)
        self._requested = cause

    def _has_room(self, world_size: int, draining: set[str], now: float) -> bool:
        """Whether an elastic job could have had more workers for some time."""
        if world_size >= self._cluster.max_workers or not self._fits_one_more(draining):
            self._room_since = None
            return False
        self._room_since = self._room_since or now
        if now - self._room_since < self._resize_delay_s:
            return False
        self._room_since = None
        self._resize_delay_s *= 2  # if the restart brings no worker, the next comes later
        return True

    def _fits_one_more(self, draining: set[str]) -> bool:
        """Whether one node that stays has all that a worker needs."""
        resources = resources_of(self._cluster)
        return any(
            all(free.get(kind, 0) >= needed for kind, needed in resources.items())
            for node_id, free in free_resources_of_nodes().items()
            if node_id not in draining
        )

    def _kill(self, stuck: StuckWorker, heartbeat: Heartbeat) -> None:
        """Log the stack of a stuck worker and kill it; Ray Train then restarts the group."""
        pid = heartbeat.pid
        message = f"rank {stuck.rank} on {heartbeat.host} (process {pid}) {stuck.reason}"
        ray.get(self._state.mark_stuck.remote(message), timeout=2)
        self._killed.add(pid)
        stack = kill_on_node(heartbeat.node_id, pid)
        log_info(f"{message}; it is killed. Its stack:\n{stack}")
