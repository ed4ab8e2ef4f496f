"""Checkpoints that are written in the background while the training continues."""

import logging
import threading
from collections.abc import Callable

from orchestrator.errors import EnvironmentProblem, OrchestratorError, Superseded
from orchestrator.retry import retry
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.outages import wait_out
from orchestrator.training.state import TrainState

logger = logging.getLogger(__name__)


class AsyncCheckpointStore:
    """Checkpoints of one run; ``save`` waits only for a copy in host memory.

    One state is being written and at most one is pending; a newer one replaces it. If the storage
    is out of reach or full, writing is retried for ``retry_timeout_s``. The next call raises the
    error of a failed write.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        retry_timeout_s: float,
        on_saved: Callable[[], None] = lambda: None,
        *,
        keep_every: bool = False,
    ) -> None:
        """``on_saved`` is called after each commit, in another thread.

        ``keep_every``: ``save`` waits for the state before it, so that none is replaced.
        """
        self.before_commit: Callable[[], None] = lambda: None
        """Called before each commit in the thread that writes; its errors are retried, too."""
        self.after_commit: Callable[[], None] = lambda: None
        """Called after each commit in the thread that writes; it must not raise."""
        self._checkpoints = checkpoints
        self._retry_timeout_s = retry_timeout_s
        self._on_saved = on_saved
        self._keep_every = keep_every
        self._changed = threading.Condition()
        self._pending: TrainState | None = None
        self._busy = False
        self._error: OrchestratorError | None = None

    def save(self, state: TrainState) -> None:
        """Copy ``state`` and commit it in the background; only rank 0 calls it.

        Raises EnvironmentProblem if an earlier state could not be committed.
        """
        copied = state.on_host()
        with self._changed:
            if self._keep_every:
                self._changed.wait_for(lambda: not self._busy)
            self._raise_earlier_error()
            if self._pending is not None:
                logger.warning(
                    "checkpoints come faster than they can be written: skipping that of %d images; "
                    "raise train.checkpoint_every",
                    self._pending.images_seen,
                )
            self._pending = copied
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._write, name="checkpoints", daemon=True).start()

    def flush(self) -> None:
        """Wait until every saved state is committed. Raises as ``save`` does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._raise_earlier_error()

    def latest(self) -> TrainState | None:
        """Load the newest valid committed state; None before the first. Waits out an outage.

        Raises NoCheckpointLeft if all that were saved are damaged or gone.
        """
        return wait_out(self._checkpoints.resume, self._retry_timeout_s)

    def _raise_earlier_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self) -> None:
        while True:
            with self._changed:
                state, self._pending = self._pending, None
                if state is None or self._error is not None:
                    self._busy = False
                    self._changed.notify_all()
                    return
            try:
                self._commit(state)
            except OrchestratorError as error:
                self._error = error
            except Exception as error:  # the training must see errors of this thread
                self._error = EnvironmentProblem(f"a checkpoint could not be written: {error!r}")

    def _commit(self, state: TrainState) -> None:
        """Commit ``state``, or a newer one that arrives before a retry."""
        num_attempts = 0

        def attempt() -> None:
            nonlocal state, num_attempts
            num_attempts += 1
            if num_attempts > 1:
                with self._changed:
                    state, self._pending = self._pending or state, None
            self.before_commit()
            self._checkpoints.save(state)

        try:
            retry(
                attempt,
                is_transient=lambda error: (
                    isinstance(error, OrchestratorError) and not isinstance(error, Superseded)
                ),
                timeout_s=self._retry_timeout_s,
                first_pause_s=0.5,
                longest_pause_s=10.0,
                on_first_failure=lambda error: logger.warning(
                    "%s; training continues, and writing is retried", error
                ),
            )
        except Superseded:
            raise
        except OrchestratorError as error:
            raise EnvironmentProblem(
                f"the checkpoint of {state.images_seen} images could not be written for "
                f"{self._retry_timeout_s:.0f} s: {error}"
            ) from error
        self._on_saved()
        self.after_commit()
        if num_attempts > 1:
            logger.warning("the checkpoint of %d images is written", state.images_seen)
