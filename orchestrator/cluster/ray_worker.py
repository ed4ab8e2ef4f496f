"""One worker of a run under Ray Train: what it does, and what it tells the driver meanwhile."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.train.torch

from orchestrator.cluster.failure_policy import Cause, Failure, Leaving, num_halvings
from orchestrator.cluster.metrics_exporter import gpu_bytes
from orchestrator.cluster.worker_state import ENDED, STOP, Beat
from orchestrator.console import Report
from orchestrator.errors import OrchestratorError
from orchestrator.runs.worker_setup import Setup, Ties, train_worker
from orchestrator.training.interfaces import STEP

BEAT_S = 0.5
BEAT_TIMEOUT_S = 10.0
BEATS_PER_S = 400
"""Of all workers together; with more than 200 of them each one's become rarer."""


class Heart:
    """Tells the driver every half second what the worker does, and hears what it is asked for."""

    def __init__(self, mailbox: Any, rank: int, world_size: int) -> None:
        self._mailbox, self._rank, self._world_size = mailbox, rank, world_size
        self._every_s = max(BEAT_S, world_size / BEATS_PER_S)
        self._node = ray.get_runtime_context().get_node_id()
        self._group = ray.util.get_current_placement_group()
        self._doing, self._since = "starting", time.monotonic()
        self._steps, self._longest_step_s = 0, 0.0
        self._wish: str | None = None
        self._saved_at: float | None = None

    def doing(self, what: str) -> None:
        """The worker does something else from now on."""
        now = time.monotonic()
        if self._doing == STEP and self._steps > 1:
            self._longest_step_s = max(self._longest_step_s, now - self._since)
        self._steps += what == STEP
        self._doing, self._since = what, now

    def saved(self) -> None:
        """A checkpoint has been committed."""
        self._saved_at = time.time()

    def should_stop(self) -> bool:
        """Whether the worker is asked to save and end."""
        return self._wish is not None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat until the block ends."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(over,), name="heart", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=BEAT_TIMEOUT_S)
            self.doing(ENDED)
            self._beat()

    def _beat_until(self, over: threading.Event) -> None:
        while not over.is_set():
            self._beat()
            over.wait(self._every_s)

    def _beat(self) -> None:
        beat = Beat(
            self._world_size,
            self._node,
            socket.gethostname(),
            os.getpid(),
            self._doing,
            time.monotonic() - self._since,
            self._steps,
            self._longest_step_s,
            self._group,
            self._saved_at,
            gpu_bytes(),
        )
        with suppress(ray.exceptions.RayError):  # without a driver the worker ends anyway
            came = self._mailbox.beat.remote(self._rank, beat)
            self._wish = ray.get(came, timeout=BEAT_TIMEOUT_S)


class ToDriver(logging.Handler):
    """Takes a worker's warnings to where a person sees them."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self.mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        """Send the words; nobody waits for them."""
        self.mailbox.note.remote(f"worker: {record.getMessage()}")


def train_function(config: dict[str, Any]) -> None:
    """Train as one worker of the group that Ray Train has started.

    Raises:
        Leaving: on rank 0, the workers have saved, and are to begin again with others.
        OrchestratorError: what is wrong; one that no retry can mend is told to the driver first.
    """
    context, mailbox = ray.train.get_context(), config["mailbox"]
    rank, world_size = context.get_world_rank(), context.get_world_size()
    failures: list[Failure] = ray.get(mailbox.failures.remote())
    logging.getLogger("orchestrator").addHandler(ToDriver(mailbox))
    heart = Heart(mailbox, rank, world_size)

    def report(report: Report) -> None:
        mailbox.tell.remote(report=asdict(report))

    try:
        with heart.beating():
            outcome = train_worker(
                _smaller(config["setup"], world_size, num_halvings(failures)),
                Ties(report, heart.should_stop, heart.doing, heart.saved),
                rank=rank,
                world_size=world_size,
                device=ray.train.torch.get_device(),
            )
    except OrchestratorError as error:
        if not error.retry:
            ray.get(mailbox.tell.remote(error=error))
        raise
    if rank > 0:
        return  # an error here would end rank 0 while it still writes the checkpoint
    wish: str | None = ray.get(mailbox.wish.remote())
    if not outcome.finished and wish is not None and wish != STOP:
        raise Leaving(Cause(wish))
    ray.get(mailbox.tell.remote(outcome=asdict(outcome)))


def _smaller(setup: Setup, world_size: int, halvings: int) -> Setup:
    """The same job with passes of fewer images, after there was too little memory."""
    if not halvings:
        return setup
    train = setup.job.train
    share = -(-train.batch_size // world_size)
    size = max(1, (train.microbatch_size or share) >> halvings)
    smaller = train.model_copy(update={"microbatch_size": size})
    return replace(setup, job=setup.job.model_copy(update={"train": smaller}))
