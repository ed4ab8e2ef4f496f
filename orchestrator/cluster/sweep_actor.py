"""The actor that leads a sweep: all trainings and the driver speak to it.

It imports no torch, so it is there before the first process that trains.
"""

import time
from dataclasses import replace
from typing import Any

from orchestrator.cluster.worker_state import SILENT_S
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.redaction import mask
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.early_stopping import Verdict
from orchestrator.sweeps.records import Status, Trial
from orchestrator.sweeps.status import Progress, Pulse
from orchestrator.sweeps.store import SweepStore
from orchestrator.sweeps.study import Study

PATIENCE_S = 300.0
"""For which a storage that is out of reach only holds a sweep up."""
RETRY_S = 2.0
STOP_POLL_S = 2.0
"""Between two looks for a wish to stop in the storage."""


class Conductor:
    """Holds the study of a sweep; one call at a time, so decisions have an order."""

    def __init__(self, storage: str, name: str, max_failures: int) -> None:
        """``storage`` is the job's; the sweep ``name`` has been announced there."""
        self._store = SweepStore(open_storage(storage), name)
        self._max_failures = max_failures
        self._study = Study(self._store.sweep(), self._save, self._newest)
        self._tasks: dict[int, Any] = {}
        self._attempts: dict[int, str] = {}
        self._seen: dict[int, int] = {}
        self._pulses: dict[int, Pulse] = {}
        self._notes: list[str] = []
        self._polled = time.monotonic()

    def next(self, attempt: str) -> Trial | None:
        """A training to run now, by ``attempt``; None if there is none yet, or none any more."""
        self._hear_stop()
        trial = self._study.next()
        if trial is not None:
            self._attempts[trial.number] = attempt
        return trial

    def is_over(self) -> bool:
        """Whether nothing more is to be started."""
        return self._study.stopping_or_done

    def give(self, number: int, task: Any) -> None:
        """Lay out what a training needs to know: a list with a reference to a Task."""
        self._tasks[number] = task

    def task(self, number: int) -> Any:
        """What training ``number`` needs to know, as it was given."""
        return self._tasks[number]

    def beat(self, pulse: Pulse) -> None:
        """Take a sign of life, every few seconds."""
        self._pulses[pulse.number] = replace(pulse, came=time.monotonic())

    def started(self, number: int, mlflow_run_id: str) -> None:
        """A training begins, with this MLflow run."""
        self._study.started(number, mlflow_run_id)

    def look(self, number: int, images_seen: int, values: tuple[float, ...]) -> Verdict:
        """Take a look at a training; whether it goes on."""
        return self._study.look(number, images_seen, values)

    def wish(self, number: int, images_seen: int) -> Verdict | None:
        """What is wanted of a training whatever it looks like."""
        self._seen[number] = images_seen
        self._hear_stop()
        return self._study.wish_for(number, images_seen)

    def ended(self, number: int, attempt: str, status: Status, why: str) -> None:
        """A training's process has ended in good order."""
        if self._take_end(number, attempt):
            self._study.ended(number, status, why)

    def lost(self, number: int, attempt: str, why: str) -> None:
        """A training's process is gone, or ended what it could have finished."""
        if self._take_end(number, attempt):
            self._study.lost(number, why, self._max_failures)

    def stop(self, why: str) -> None:
        """Save and end all; they can go on another time."""
        self._study.stop(why)

    def end_early(self, why: str) -> None:
        """Start no more and end for good what runs."""
        self._study.end_early(why)

    def note(self, text: str) -> None:
        """Keep words for the driver to say."""
        self._notes.append(text)

    def progress(self, num_notes: int) -> Progress:
        """How the sweep stands, with the notes after the first ``num_notes``."""
        wish = self._study.wish
        stopped = wish is not None and wish.action == "pause"
        since = time.monotonic() - SILENT_S
        silent = [pulse for pulse in self._pulses.values() if pulse.came < since]
        for pulse in silent:
            del self._pulses[pulse.number]
        notes = self._notes[num_notes:]
        return Progress(self._study.sweep, dict(self._seen), notes, stopped, silent)

    def _save(self, trial: Trial) -> None:
        """Write a record; a storage that is gone is waited for, and everybody with it."""
        start = time.monotonic()
        while True:
            try:
                self._store.save(trial)
                break
            except (TryAgain, EnvironmentProblem):
                if time.monotonic() - start > PATIENCE_S:
                    raise
                time.sleep(RETRY_S)
        if (now := time.monotonic()) - start > RETRY_S:  # nobody could be heard meanwhile
            self._pulses = {n: replace(pulse, came=now) for n, pulse in self._pulses.items()}

    def _take_end(self, number: int, attempt: str) -> bool:
        """Take the end of an attempt; False if it was told before.

        Tune tells of an end later than the process itself, and another attempt may run by then.
        """
        if self._attempts.get(number) != attempt:
            return False
        del self._attempts[number]
        self._seen.pop(number, None)
        self._pulses.pop(number, None)
        return True

    def _newest(self, run: str) -> str:
        from orchestrator.runs.checkpoints import checkpoints_at

        place = f"{self._store.storage.uri}/{run}"
        checkpoints, _ = checkpoints_at(place)
        if checkpoints.latest() is None:  # it has read every byte of the newest one
            raise OrchestratorError(f"there is no whole checkpoint at {mask(place)} to be copied")
        return f"{run}/checkpoints/{checkpoints.names()[-1]}"

    def _hear_stop(self) -> None:
        now = time.monotonic()
        if now - self._polled < STOP_POLL_S or self._study.wish is not None:
            return
        self._polled = now
        if self._store.asked_to_stop():
            self._study.stop("someone stopped the sweep")


class DeskOf:
    """A training's way to the conductor."""

    def __init__(self, conductor: Any, number: int) -> None:
        self._conductor, self._number = conductor, number
        self._seen = 0

    def started(self, mlflow_run_id: str) -> None:
        """It begins, with this MLflow run."""
        self._ask("started", mlflow_run_id)

    def look(self, images_seen: int, values: tuple[float, ...]) -> None:
        """What it looks like."""
        self._ask("look", images_seen, values)

    def wish(self, images_seen: int) -> Verdict | None:
        """What is wanted of it, so far along."""
        wish: Verdict | None = self._ask("wish", images_seen)
        return wish

    def _ask(self, method: str, *given: Any) -> Any:
        import ray

        return ray.get(getattr(self._conductor, method).remote(self._number, *given))
