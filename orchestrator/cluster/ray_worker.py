"""One worker of a run under Ray Train: it trains and sends heartbeats to the driver."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.train.torch

from orchestrator.cluster.failure_policy import Cause, Failure, RestartRequested, num_halvings
from orchestrator.cluster.metrics_exporter import held_gpu_bytes
from orchestrator.cluster.ray_evaluation import RayEvaluation
from orchestrator.cluster.worker_state import ENDED, STOP, Heartbeat
from orchestrator.console import ProgressReport
from orchestrator.errors import OrchestratorError
from orchestrator.periodic import Periodic
from orchestrator.runs.run_context import RunContext, WorkerCallbacks
from orchestrator.runs.worker_setup import train_worker
from orchestrator.training.interfaces import STEP

HEARTBEAT_S = 0.5
SEND_TIMEOUT_S = 10.0
MAX_HEARTBEATS_PER_S = 400
"""Of all workers together; with more than 200 workers each one sends them less often."""


class HeartbeatSender:
    """Sends a worker's heartbeats every half second and receives the requested action."""

    def __init__(self, state: Any, rank: int, world_size: int, attempt: int) -> None:
        """Send to the actor ``state``, as a worker of the group ``attempt``; see Heartbeat."""
        self._state, self._rank, self._world_size = state, rank, world_size
        self._attempt = attempt
        self._every_s = max(HEARTBEAT_S, world_size / MAX_HEARTBEATS_PER_S)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._placement_group = ray.util.get_current_placement_group()
        self._activity, self._since = "starting", time.monotonic()
        self._num_steps, self._longest_step_s = 0, 0.0
        self._requested_action: str | None = None
        self._checkpoint_at: float | None = None

    def set_activity(self, activity: str) -> None:
        """Note that the worker begins another activity."""
        now = time.monotonic()
        if self._activity == STEP and self._num_steps > 1:
            self._longest_step_s = max(self._longest_step_s, now - self._since)
        self._num_steps += activity == STEP
        self._activity, self._since = activity, now

    def checkpoint_saved(self) -> None:
        """Note that a checkpoint has been committed."""
        self._checkpoint_at = time.time()

    def should_stop(self) -> bool:
        """Whether the worker is requested to save and exit."""
        return self._requested_action is not None

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send heartbeats until the block ends, and then a last one."""
        try:
            every_s, timeout_s = self._every_s, SEND_TIMEOUT_S
            with Periodic(self._send, every_s, name="heartbeat", join_timeout_s=timeout_s):
                yield
        finally:
            self.set_activity(ENDED)
            self._send()

    def _send(self) -> None:
        heartbeat = Heartbeat(
            world_size=self._world_size,
            node_id=self._node_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            activity=self._activity,
            activity_s=time.monotonic() - self._since,
            num_steps=self._num_steps,
            longest_step_s=self._longest_step_s,
            placement_group=self._placement_group,
            checkpoint_at=self._checkpoint_at,
            gpu_bytes=held_gpu_bytes(),
            attempt=self._attempt,
        )
        with suppress(ray.exceptions.RayError):  # without a driver the worker ends anyway
            reply = self._state.heartbeat.remote(self._rank, heartbeat)
            self._requested_action = ray.get(reply, timeout=SEND_TIMEOUT_S)


class DriverLogHandler(logging.Handler):
    """Sends a worker's warnings to the driver, which shows them to the user."""

    def __init__(self, actor: Any) -> None:
        super().__init__(logging.WARNING)
        self._actor = actor

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message without waiting for its arrival."""
        self._actor.add_message.remote(f"worker: {record.getMessage()}")


def train_function(config: dict[str, Any]) -> None:
    """Train as one worker of the group that Ray Train has started.

    Raises:
        RestartRequested: on rank 0, the workers have saved and are to be restarted.
        OrchestratorError: of any rank; one that no retry can fix is sent to the driver first.
    """
    context, state = ray.train.get_context(), config["state"]
    rank, world_size = context.get_world_rank(), context.get_world_size()
    failures: list[Failure] = ray.get(state.failures.remote())
    logging.getLogger("orchestrator").addHandler(DriverLogHandler(state))
    sender = HeartbeatSender(state, rank, world_size, attempt=len(failures))

    def send_report(report: ProgressReport) -> None:
        state.update.remote(report=asdict(report))

    callbacks = WorkerCallbacks(
        send_report, sender.should_stop, sender.set_activity, sender.checkpoint_saved
    )
    try:
        with sender.sending():
            outcome = train_worker(
                _with_smaller_passes(config["setup"], world_size, num_halvings(failures)),
                callbacks,
                rank=rank,
                world_size=world_size,
                device=ray.train.torch.get_device(),
                launch_evaluation=RayEvaluation,
            )
    except OrchestratorError as error:
        if not error.retry:
            ray.get(state.update.remote(error=error))
        raise
    if rank > 0:
        return  # an error here would end rank 0 while it still writes the checkpoint
    requested: str | None = ray.get(state.requested_action.remote())
    if not outcome.finished and requested is not None and requested != STOP:
        raise RestartRequested(Cause(requested))
    ray.get(state.update.remote(outcome=asdict(outcome)))


def _with_smaller_passes(context: RunContext, world_size: int, halvings: int) -> RunContext:
    """Return the same job with fewer images per pass, after a lack of memory."""
    if not halvings:
        return context
    train = context.job.train
    share = -(-train.batch_size // world_size)
    size = max(1, (train.microbatch_size or share) >> halvings)
    smaller = train.model_copy(update={"microbatch_size": size})
    return replace(context, job=context.job.model_copy(update={"train": smaller}))
