"""Evaluate checkpoints beside the training: one at a time, the newest next.

Which checkpoint is next follows from the storage alone: the newest one, if it is as many images
after the last one that was evaluated as the job says. So an evaluation that was killed, with or
without its run, is done again, or that of a newer checkpoint. A checkpoint is kept while it is
being evaluated.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from shlex import quote
from typing import TypeAlias

from orchestrator.errors import OrchestratorError
from orchestrator.record_reader import DamagedRecord
from orchestrator.redaction import mask
from orchestrator.runs.checkpoints import Checkpoints, images_of
from orchestrator.runs.evaluation_process import EvaluationEnd, EvaluationHandle, EvaluationLauncher
from orchestrator.runs.evaluation_task import (
    EvaluationRecord,
    read_record,
    record_key,
    records_folder,
)
from orchestrator.runs.run_context import RunContext
from orchestrator.training.loop import Outcome

POLL_S = 0.2
RETRY_S = 2.0
"""Pause after an evaluation that was killed, or a storage that did not answer."""
MAX_FAILURES = 25
"""Attempts in a row that may fail once the training is over; then the run ends without one."""

_Evaluated: TypeAlias = dict[str, EvaluationRecord | None]
"""By checkpoint; None for one that cannot be evaluated."""
logger = logging.getLogger(__name__)


class Evaluations:
    """Evaluates the checkpoints of one run, on rank 0, in a thread that mostly waits."""

    def __init__(
        self,
        context: RunContext,
        checkpoints: Checkpoints,
        total_images: int,
        launch: EvaluationLauncher,
        on_result: Callable[[EvaluationRecord], None],
    ) -> None:
        """Args:
        checkpoints: those that the training saves, which keep what is being evaluated.
        total_images: length of the training.
        launch: starts an evaluation.
        on_result: called with each result, in the thread, and at the start with those that an
            earlier process of the run may not have passed on.
        """
        self._context, self._checkpoints = context, checkpoints
        self._total, self._launch, self._on_result = total_images, launch, on_result
        self._evaluated: _Evaluated | None = None
        """None until those in the storage are known."""
        self._wake, self._closing, self._finishing = (threading.Event() for _ in range(3))
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="evaluations", daemon=True)
        self._thread.start()

    def checkpoint_saved(self) -> None:
        """Look for what is to be evaluated; waits for nothing."""
        self._wake.set()

    def finish(self, outcome: Outcome, should_stop: Callable[[], bool]) -> Outcome:
        """Wait for the evaluation of the last checkpoint, and add its values to the metrics.

        If it is asked to stop meanwhile, the outcome is that of a run that has not finished.
        """
        self._finishing.set()
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join(POLL_S)
            if should_stop():
                return replace(outcome, finished=False)
        last = self._at(outcome.images_seen)
        if last is None:
            return outcome
        return replace(outcome, metrics={**outcome.metrics, **last.points()})

    def close(self) -> None:
        """End what is running."""
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def _at(self, images_seen: int) -> EvaluationRecord | None:
        records = reversed([each for each in (self._evaluated or {}).values() if each is not None])
        return next((each for each in records if each.images_seen == images_seen), None)

    def _run(self) -> None:
        silent_since: float | None = None
        while not self._closing.is_set():
            try:
                if self._evaluated is None:
                    self._evaluated = self._restore()
                is_over = self._step(self._evaluated)
            except OrchestratorError as error:  # of the storage
                silent_since = silent_since or time.monotonic()
                waited_s = time.monotonic() - silent_since
                if self._finishing.is_set() and waited_s > self._context.job.data.retry_timeout_s:
                    self._give_up(str(error))
                    return
                self._closing.wait(RETRY_S)
                continue
            silent_since = None
            if is_over:
                return

    def _step(self, evaluated: _Evaluated) -> bool:
        """Evaluate the next checkpoint, or wait for one; return whether that was the last thing."""
        checkpoint = self._next(evaluated)
        if checkpoint is None:
            if not self._finishing.is_set():
                self._wake.wait()
                self._wake.clear()
                return False
            return True
        self._checkpoints.in_use = checkpoint
        try:
            end = self._wait_for(self._launch(self._context, checkpoint))
        except OSError as error:  # no memory or no number left for another process
            end = EvaluationEnd(str(error), try_again=True)
        if end is None:
            return True
        if not end.problem:
            key = record_key(self._context.name, checkpoint)
            evaluated[checkpoint] = record = read_record(self._context.storage(), key)
            self._failures = 0
            self._on_result(record)
        elif not end.try_again:
            logger.warning("checkpoint %s is not evaluated: %s", checkpoint, end.problem)
            evaluated[checkpoint] = None
        else:
            return self._failed(end.problem)
        return False

    def _failed(self, problem: str) -> bool:
        """Pause before another attempt; return whether there were too many."""
        self._failures += 1
        if self._finishing.is_set() and self._failures >= MAX_FAILURES:
            self._give_up(f"{problem}, {self._failures} times in a row")
            return True
        if self._failures == 1:
            logger.warning("an evaluation is tried again: %s", problem)
        self._closing.wait(RETRY_S)
        return False

    def _restore(self) -> _Evaluated:
        """Read the results in the storage and pass them on: MLflow may lack them."""
        storage, name = self._context.storage(), self._context.name
        found: _Evaluated = {}
        for key in sorted(storage.list(records_folder(name))):
            try:
                record = read_record(storage, key)
            except DamagedRecord as error:
                logger.warning("%s", error)
                continue
            found[record.checkpoint] = record
            self._on_result(record)
        return found

    def _next(self, evaluated: _Evaluated) -> str | None:
        """Return the checkpoint to evaluate now; None if there is none."""
        section = self._context.job.evaluate
        assert section is not None
        names = self._checkpoints.names()
        if not names or names[-1] in evaluated:
            return None
        seen = images_of(names[-1])
        # One that is damaged or gone, after which the run went back, counts no longer.
        counted = [images_of(each) for each in evaluated if each in names or images_of(each) < seen]
        before = max(counted, default=0)
        if seen <= before:  # the run saved the same state twice
            return None
        is_due = section.every is None or seen // section.every > before // section.every
        return names[-1] if is_due or seen >= self._total else None

    def _wait_for(self, handle: EvaluationHandle) -> EvaluationEnd | None:
        """Wait until an evaluation ends; None if it was cancelled."""
        while (end := handle.poll()) is None:
            if self._closing.wait(POLL_S):
                handle.cancel()
                return None
        return end

    def _give_up(self, problem: str) -> None:
        run = f"{mask(self._context.job.storage).rstrip('/')}/{self._context.name}"
        data = self._context.job.data.validation or "SET"
        logger.warning(
            "the last checkpoint is not evaluated: %s; to do it later: orchestrator evaluate %s "
            "--data %s",
            problem, quote(run), quote(mask(data)),
        )  # fmt: skip
