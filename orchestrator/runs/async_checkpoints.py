"""Checkpoints that are uploaded while the training goes on."""

import logging
import threading
import time
from collections.abc import Callable

from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.training.state import TrainState

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0

logger = logging.getLogger(__name__)


class UploadedCheckpoints:
    """Checkpoints of one run, whose ``save`` waits for nothing but a copy in the host's memory.

    One state is being uploaded and at most one waits; a newer one takes its place. A storage that
    is out of reach or full is tried again for ``retry_timeout_s``. The error of an upload is raised
    by the call that comes after it.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        retry_timeout_s: float,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """``saved`` is called after each commit, by another thread."""
        self._checkpoints = checkpoints
        self._retry_timeout_s = retry_timeout_s
        self._saved = saved
        self._changed = threading.Condition()
        self._waiting: TrainState | None = None
        self._busy = False
        self._error: OrchestratorError | None = None

    def save(self, state: TrainState) -> None:
        """Copy ``state`` and see to it that it is committed; rank 0 calls it.

        Raises:
            EnvironmentProblem: an earlier state could not be committed.
        """
        copied = state.on_host()
        with self._changed:
            self._raise_earlier()
            if self._waiting is not None:
                logger.warning(
                    "checkpoints come faster than they can be written: that of %d images is left "
                    "out; raise train.checkpoint_every",
                    self._waiting.images_seen,
                )
            self._waiting = copied
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._upload, name="checkpoints", daemon=True).start()

    def flush(self) -> None:
        """Wait until all that was saved is committed. Raises as ``save`` does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._raise_earlier()

    def latest(self) -> TrainState | None:
        """The newest whole state; None before the first. What is being written does not count."""
        return self._checkpoints.latest()

    def _raise_earlier(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _upload(self) -> None:
        while True:
            with self._changed:
                state, self._waiting = self._waiting, None
                if state is None or self._error is not None:
                    self._busy = False
                    self._changed.notify_all()
                    return
            try:
                self._commit(state)
            except OrchestratorError as error:
                self._error = error
            except Exception as error:  # a thread's error must reach the training
                self._error = EnvironmentProblem(f"a checkpoint could not be written: {error!r}")

    def _commit(self, state: TrainState) -> None:
        """Commit ``state``, or a newer one that has come meanwhile, through passing faults."""
        deadline, pause_s, told = time.monotonic() + self._retry_timeout_s, FIRST_PAUSE_S, False
        while True:
            try:
                self._checkpoints.save(state)
            except OrchestratorError as error:
                if time.monotonic() + pause_s > deadline:
                    raise EnvironmentProblem(
                        f"the checkpoint of {state.images_seen} images could not be written for "
                        f"{self._retry_timeout_s:.0f} s: {error}"
                    ) from error
                if not told:
                    logger.warning("%s; training goes on, and it is tried again", error)
                    told = True
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                with self._changed:  # the newest state is what is wanted once there is room again
                    state, self._waiting = self._waiting or state, None
            else:
                self._saved()
                if told:
                    logger.warning("the checkpoint of %d images is written", state.images_seen)
                return
