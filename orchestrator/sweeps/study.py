"""What happens in a sweep: which training is next, what becomes of it, and what is written down."""

import time
from collections.abc import Callable
from dataclasses import replace

from orchestrator.config.sweep import Value
from orchestrator.errors import OrchestratorError
from orchestrator.sweeps.early_stopping import Settlement, Verdict, judge, settle
from orchestrator.sweeps.records import Leg, Look, Status, Sweep, Trial
from orchestrator.sweeps.searchers import num_configurations, propose


class Study:
    """Every decision of one sweep, each written down before it is acted upon.

    There is nothing in it but the records: a study that is made from those of a lost one decides
    as that one would have.
    """

    def __init__(
        self,
        sweep: Sweep,
        save: Callable[[Trial], None],
        newest_checkpoint: Callable[[str], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Trainings that ran when an earlier driver was lost are to go on.

        Args:
            sweep: with the trainings so far.
            save: writes a training's record.
            newest_checkpoint: where in the storage the newest verified checkpoint of a run is.
            clock: seconds.
        """
        self.trials = sorted(sweep.trials, key=lambda trial: trial.number)
        self.section = sweep.section
        self._sweep, self._save, self._newest, self._clock = sweep, save, newest_checkpoint, clock
        self._num_trials = num_configurations(self.section) * self.section.seeds_per_config
        self._began: dict[int, float] = {}
        self._stopping, self._out_of_time = "", False
        for trial in self.trials:
            if trial.status == "running":
                self._interrupt(trial, "its driver was lost")

    @property
    def sweep(self) -> Sweep:
        """The sweep as it stands."""
        return replace(self._sweep, trials=self.trials, num_trials=self._num_trials)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing more is to be started."""
        return self.stopping_or_done and not self._running()

    @property
    def stopping_or_done(self) -> bool:
        """Whether nothing more is to be started."""
        if self._stopping:
            return True
        whole = len(self.trials) >= self._num_trials
        return whole and all(trial.is_over for trial in self.trials)

    def stop(self, why: str) -> None:
        """Start no more; trainings that run are to save and end, and can go on another time."""
        self._stopping = why

    def end_early(self, why: str) -> None:
        """Start no more, and end for good what runs: the time is over."""
        self._stopping, self._out_of_time = why, True
        for trial in self.trials:
            if trial.status in ("waiting", "paused"):
                self._interrupt(trial, why)

    def next(self) -> Trial | None:
        """A training to run now, which counts as running from here on; None if there is none."""
        if self._stopping:
            return None
        self._settle()
        waiting = [trial for trial in self.trials if trial.status == "waiting"]
        # Going on, a parent deletes old checkpoints, and its copies may not have theirs yet.
        parents = {t.legs[-1].parent for t in self.trials if _is_copy_to_be(t)}
        trial = next((t for t in waiting if t.number not in parents), None) or self._new()
        if trial is not None:
            self._began[trial.number] = self._clock()
            self._change(trial, "running", trial.why if trial.told == "pause" else "")
        return trial

    def look(self, number: int, images_seen: int, values: tuple[float, ...]) -> Verdict:
        """Take a look at a training; whether it goes on."""
        trial = self.trials[number]
        if images_seen > trial.images_seen:  # else it was told twice, after a restart
            order = 1 + max((t.looks[-1].order for t in self.trials if t.looks), default=-1)
            trial.looks.append(Look(images_seen, values, order))
            verdict = judge(self.sweep, trial)
            trial.told, trial.why = verdict.action, verdict.why
            self._save(trial)
        return self.wish_for(number, images_seen) or Verdict("go on")

    def wish_for(self, number: int, images_seen: int) -> Verdict | None:
        """What a training is to do that is so far along: what all are, or what it was told before.

        The latter where its process was lost before it had done so. It trains again up to the look
        then, for others may want to copy its checkpoint.
        """
        trial = self.trials[number]
        if self._out_of_time or trial.told == "go on" or images_seen < trial.images_seen:
            return self.wish
        return Verdict(trial.told, trial.why)

    @property
    def wish(self) -> Verdict | None:
        """What all trainings that run are to do, whatever their looks say."""
        if not self._stopping:
            return None
        return Verdict("stop" if self._out_of_time else "pause", self._stopping)

    def started(self, number: int, mlflow_run_id: str) -> None:
        """Write down where a training's metrics go."""
        trial = self.trials[number]
        trial.legs[-1] = replace(trial.legs[-1], mlflow_run_id=mlflow_run_id)
        self._save(trial)

    def ended(self, number: int, status: Status, why: str = "") -> None:
        """Write down how a training's process ended in good order."""
        trial = self.trials[number]
        if status == "paused" and (self._out_of_time or trial.told != "pause"):
            self._interrupt(trial, why)  # for whoever resumes the sweep
        else:
            self._change(trial, status, why)

    def lost(self, number: int, why: str, max_failures: int) -> None:
        """Write down that a training's process is gone; it goes on, but not for ever."""
        trial = self.trials[number]
        if trial.status != "running":
            return
        trial.failures += 1
        if trial.failures > max_failures and trial.told != "stop":
            self._change(trial, "failed", f"{why}; cluster.max_failures is {max_failures}")
        else:
            self._interrupt(trial, why)

    def _running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == "running"]

    def _new(self) -> Trial | None:
        number, repeats = len(self.trials), self.section.seeds_per_config
        if number >= self._num_trials:
            return None
        configuration, repeat = divmod(number, repeats)
        if repeat:
            values = self.trials[number - repeat].legs[0].values
        else:
            values = propose(self.sweep, configuration)
        leg = Leg(f"sweeps/{self._sweep.name}/t{number:03d}", values)
        trial = Trial(number, configuration, repeat, [leg])
        self.trials.append(trial)
        return trial

    def _settle(self) -> None:
        """Let go on, end or replace what has waited for others."""
        for settled in settle(self.sweep):
            trial = self.trials[settled.number]
            trial.told, why = "go on", settled.why
            if settled.action == "stop":
                self._change(trial, "stopped", why)
                continue
            if settled.action == "copy":
                try:
                    trial.legs.append(self._copy(trial, settled))
                except OrchestratorError as error:
                    why += f"; not copied but gone on with, for {error}"
            self._change(trial, "waiting", why)

    def _copy(self, trial: Trial, settled: Settlement) -> Leg:
        """The stretch that a copy is to train. Raises OrchestratorError without a checkpoint."""
        assert settled.parent is not None
        parent = self.trials[settled.parent]
        values: dict[str, Value] = dict(settled.values or {})
        first = trial.legs[0].run
        return Leg(
            f"{first}-{len(trial.legs)}",
            values,
            source=self._newest(parent.legs[-1].run),
            parent=parent.number,
            from_images=parent.images_seen,
        )

    def _interrupt(self, trial: Trial, why: str) -> None:
        """A training does not run any more, and is not at its end: it is to go on, if it may."""
        if trial.told == "stop":
            self._change(trial, "stopped", trial.why)
        elif self._out_of_time:
            self._change(trial, "stopped" if trial.looks else "failed", self._stopping)
        else:
            self._change(trial, "waiting", trial.why if trial.told == "pause" else why)

    def _change(self, trial: Trial, status: Status, why: str = "") -> None:
        began = self._began.pop(trial.number, None) if status != "running" else None
        if began is not None:
            trial.seconds += self._clock() - began
        trial.status, trial.why = status, why
        self._save(trial)


def _is_copy_to_be(trial: Trial) -> bool:
    """Whether it is to start as a copy and has not."""
    last = trial.legs[-1]
    return last.source is not None and last.mlflow_run_id is None and not trial.is_over
