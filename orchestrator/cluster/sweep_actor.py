"""Controller of a sweep: an actor that all trials and the driver call.

It imports no torch, so that it starts before the first process that trains.
"""

import time
from dataclasses import replace
from typing import Any

from orchestrator.cluster.worker_state import HEARTBEAT_TIMEOUT_S
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.redaction import mask
from orchestrator.retry import retry
from orchestrator.runs.lease import Fence
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.early_stopping import TrialDecision
from orchestrator.sweeps.records import Status, Trial
from orchestrator.sweeps.status import SweepStatus, TrialHeartbeat
from orchestrator.sweeps.store import SweepStore
from orchestrator.sweeps.study import Study

SAVE_TIMEOUT_S = 300.0
"""A storage that is out of reach for less than this only delays the sweep."""
RETRY_S = 2.0
STOP_POLL_S = 2.0
"""Seconds between two checks for a stop request in the storage."""


class SweepController:
    """Actor that holds a sweep's study; one call at a time, so that decisions have an order."""

    def __init__(
        self, storage: str, name: str, max_failures: int, fence: Fence | None = None
    ) -> None:
        """Load the sweep ``name``, which has been created in the job's ``storage``."""
        opened = open_storage(storage) if fence is None else fence.storage
        self._store = SweepStore(opened, name, fence)
        self._max_failures = max_failures
        self._study = Study(self._store.load(), self._save, self._newest_checkpoint)
        self._tasks: dict[int, Any] = {}
        self._attempts: dict[int, str] = {}
        self._images_seen: dict[int, int] = {}
        self._heartbeats: dict[int, TrialHeartbeat] = {}
        self._messages: list[str] = []
        self._stop_checked_at = time.monotonic()

    def next_trial(self, attempt: str) -> Trial | None:
        """Return a trial that ``attempt`` is to run now; None if there is none yet or any more."""
        self._check_stop_request()
        trial = self._study.next_trial()
        if trial is not None:
            self._attempts[trial.number] = attempt
        return trial

    def is_over(self) -> bool:
        """Whether no more trials will be started."""
        return self._study.is_exhausted

    def put_task(self, number: int, task: Any) -> None:
        """Store the task of a trial: a list with a reference to a TrialTask."""
        self._tasks[number] = task

    def task(self, number: int) -> Any:
        """Return the task of a trial, as it was stored."""
        return self._tasks[number]

    def heartbeat(self, heartbeat: TrialHeartbeat) -> None:
        """Store a heartbeat, which comes every few seconds."""
        self._heartbeats[heartbeat.number] = replace(heartbeat, arrived_at=time.monotonic())

    def started(self, number: int, mlflow_run_id: str) -> None:
        """Record that a trial has started, with its MLflow run."""
        self._study.record_start(number, mlflow_run_id)

    def report_result(
        self, number: int, images_seen: int, values: tuple[float, ...]
    ) -> TrialDecision:
        """Record an intermediate result of a trial; return whether it continues."""
        return self._study.report_result(number, images_seen, values)

    def requested_action(self, number: int, images_seen: int) -> TrialDecision | None:
        """Return the action requested of a trial whatever its results; None if there is none."""
        self._images_seen[number] = images_seen
        self._check_stop_request()
        return self._study.requested_action(number, images_seen)

    def ended(self, number: int, attempt: str, status: Status, reason: str) -> None:
        """Record that a trial's process has ended in good order."""
        if self._end_attempt(number, attempt):
            self._study.record_end(number, status, reason)

    def lost(self, number: int, attempt: str, reason: str) -> None:
        """Record that a trial's process was lost, or ended a trial that could have finished."""
        if self._end_attempt(number, attempt):
            self._study.record_process_loss(number, reason, self._max_failures)

    def stop(self, reason: str) -> None:
        """Pause all trials, so that the sweep can be resumed."""
        self._study.stop(reason)

    def end_early(self, reason: str) -> None:
        """Start no more trials and end the running ones."""
        self._study.end_early(reason)

    def add_message(self, text: str) -> None:
        """Keep a message that the driver shows to the user."""
        self._messages.append(text)

    def status(self, num_messages: int) -> SweepStatus:
        """Return the status, with the messages after the first ``num_messages``."""
        requested = self._study.sweep_action
        stopped = requested is not None and requested.action == "pause"
        expired = time.monotonic() - HEARTBEAT_TIMEOUT_S
        unresponsive = [one for one in self._heartbeats.values() if one.arrived_at < expired]
        for heartbeat in unresponsive:
            del self._heartbeats[heartbeat.number]
        messages = self._messages[num_messages:]
        images_seen = dict(self._images_seen)
        return SweepStatus(self._study.sweep, images_seen, messages, stopped, unresponsive)

    def _save(self, trial: Trial) -> None:
        """Save a trial; a storage that is out of reach delays this and all other calls."""
        start = time.monotonic()
        retry(
            lambda: self._store.save_trial(trial),
            is_transient=lambda error: isinstance(error, TryAgain | EnvironmentProblem),
            timeout_s=SAVE_TIMEOUT_S,
            first_pause_s=RETRY_S,
            longest_pause_s=RETRY_S,
        )
        if (now := time.monotonic()) - start > RETRY_S:  # no heartbeat could arrive meanwhile
            for number, heartbeat in self._heartbeats.items():
                self._heartbeats[number] = replace(heartbeat, arrived_at=now)

    def _end_attempt(self, number: int, attempt: str) -> bool:
        """End an attempt; return False if it had ended before.

        Tune reports an end later than the process itself, and another attempt may run by then.
        """
        if self._attempts.get(number) != attempt:
            return False
        del self._attempts[number]
        self._images_seen.pop(number, None)
        self._heartbeats.pop(number, None)
        return True

    def _newest_checkpoint(self, run: str) -> str:
        from orchestrator.runs.checkpoint_address import checkpoints_at

        place = f"{self._store.storage.uri}/{run}"
        checkpoints, _ = checkpoints_at(place)
        if checkpoints.latest() is None:  # it has read every byte of the newest one
            raise OrchestratorError(f"no complete checkpoint to copy at {mask(place)}")
        return f"{run}/checkpoints/{checkpoints.names()[-1]}"

    def _check_stop_request(self) -> None:
        now = time.monotonic()
        if now - self._stop_checked_at < STOP_POLL_S or self._study.sweep_action is not None:
            return
        self._stop_checked_at = now
        if self._store.is_stop_requested():
            self._study.stop("someone stopped the sweep")


class ActorTrialReporter:
    """TrialReporter of a trial that calls the controller."""

    def __init__(self, controller: Any, number: int) -> None:
        self._controller, self._number = controller, number

    def report_start(self, mlflow_run_id: str) -> None:
        """Report that the trial has started, with its MLflow run."""
        self._call("started", mlflow_run_id)

    def report_result(self, images_seen: int, values: tuple[float, ...]) -> None:
        """Report an intermediate result."""
        self._call("report_result", images_seen, values)

    def requested_action(self, images_seen: int) -> TrialDecision | None:
        """Return the action requested of the trial after ``images_seen``."""
        requested: TrialDecision | None = self._call("requested_action", images_seen)
        return requested

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._controller, method).remote(self._number, *arguments))
