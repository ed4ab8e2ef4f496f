"""Decisions of a sweep: which trial runs next, what becomes of it, and what is recorded."""

import time
from collections.abc import Callable
from dataclasses import replace

from orchestrator.config.search_space import num_configurations
from orchestrator.errors import OrchestratorError
from orchestrator.sweeps.early_stopping import CONTINUE, TrialDecision, decide_trial
from orchestrator.sweeps.promotion import Promotion, decide_promotions
from orchestrator.sweeps.records import IntermediateResult, Status, Sweep, Trial, TrialSegment
from orchestrator.sweeps.searchers import suggest_values


class Study:
    """All decisions of one sweep, each recorded before it is acted upon.

    A study holds nothing but the records: one built from the records of a sweep whose driver died
    decides as the first one would have.
    """

    def __init__(
        self,
        sweep: Sweep,
        save: Callable[[Trial], None],
        newest_checkpoint: Callable[[str], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Build the study; trials that were running when an earlier driver died will resume.

        Args:
            save: writes a trial's record.
            newest_checkpoint: finds the newest verified checkpoint of a run; a path relative to the
                storage.
        """
        self.trials = sorted(sweep.trials, key=lambda trial: trial.number)
        self.section = sweep.section
        self._sweep, self._save, self._clock = sweep, save, clock
        self._newest_checkpoint = newest_checkpoint
        self._num_trials = num_configurations(self.section) * self.section.seeds_per_config
        self._started_at: dict[int, float] = {}
        self._stop_reason, self._out_of_time = "", False
        for trial in self.trials:
            if trial.status == "running":
                self._interrupt(trial, "its driver died")

    @property
    def sweep(self) -> Sweep:
        """The sweep in its current state."""
        return replace(self._sweep, trials=self.trials, num_trials=self._num_trials)

    @property
    def is_over(self) -> bool:
        """Whether no trial runs and none will start."""
        return self.is_exhausted and not any(t.status == "running" for t in self.trials)

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial will start any more."""
        has_all = len(self.trials) >= self._num_trials
        return bool(self._stop_reason) or (has_all and all(t.is_over for t in self.trials))

    def stop(self, reason: str) -> None:
        """Start no more trials; running ones must save and end, and can resume later."""
        self._stop_reason = reason

    def end_early(self, reason: str) -> None:
        """Start no more trials and stop the running ones for good, for the time is up."""
        self._stop_reason, self._out_of_time = reason, True
        for trial in self.trials:
            if trial.status in ("waiting", "paused"):
                self._interrupt(trial, reason)

    def next_trial(self) -> Trial | None:
        """Select a trial to run now and mark it as running; None if there is none."""
        if self._stop_reason:
            return None
        self._apply_promotions()
        waiting = [trial for trial in self.trials if trial.status == "waiting"]
        # A parent that resumes deletes old checkpoints, which its copies may still need.
        parents = {t.segments[-1].parent for t in self.trials if _is_unstarted_copy(t)}
        trial = next((t for t in waiting if t.number not in parents), None) or self._new_trial()
        if trial is not None:
            self._started_at[trial.number] = self._clock()
            self._change(trial, "running", trial.reason if trial.last_decision == "pause" else "")
        return trial

    def report_result(
        self, number: int, images_seen: int, values: tuple[float, ...]
    ) -> TrialDecision:
        """Record an intermediate result and decide about the trial."""
        trial = self.trials[number]
        if images_seen > trial.images_seen:  # otherwise it is reported again, after a restart
            order = 1 + max((t.results[-1].order for t in self.trials if t.results), default=-1)
            trial.results.append(IntermediateResult(images_seen, values, order))
            decision = decide_trial(self.sweep, trial)
            trial.last_decision, trial.reason = decision.action, decision.reason
            self._save(trial)
        return self.requested_action(number, images_seen) or CONTINUE

    def requested_action(self, number: int, images_seen: int) -> TrialDecision | None:
        """Look up what a trial must do at ``images_seen``; None if nothing.

        A decision that its process did not carry out before it died still holds. The trial first
        trains up to the result again, since others may copy its checkpoint.
        """
        trial = self.trials[number]
        is_due = trial.last_decision != "continue" and images_seen >= trial.images_seen
        if self._out_of_time or not is_due:
            return self.sweep_action
        return TrialDecision(trial.last_decision, trial.reason)

    @property
    def sweep_action(self) -> TrialDecision | None:
        """What every running trial must do, whatever its results; None if nothing."""
        if not self._stop_reason:
            return None
        return TrialDecision("stop" if self._out_of_time else "pause", self._stop_reason)

    def record_start(self, number: int, mlflow_run_id: str) -> None:
        """Record the MLflow run of a trial that has started."""
        trial = self.trials[number]
        trial.segments[-1] = replace(trial.segments[-1], mlflow_run_id=mlflow_run_id)
        self._save(trial)

    def record_end(self, number: int, status: Status, reason: str = "") -> None:
        """Record how a trial's process ended, as reported by the process itself."""
        trial = self.trials[number]
        if status == "paused" and (self._out_of_time or trial.last_decision != "pause"):
            self._interrupt(trial, reason)  # the sweep was stopped; a resumed one continues it
        else:
            self._change(trial, status, reason)

    def record_process_loss(self, number: int, reason: str, max_failures: int) -> None:
        """Record that a trial's process died; the trial resumes up to ``max_failures`` times."""
        trial = self.trials[number]
        if trial.status != "running":
            return
        trial.num_failures += 1
        if trial.num_failures > max_failures and trial.last_decision != "stop":
            self._change(trial, "failed", f"{reason}; cluster.max_failures is {max_failures}")
        else:
            self._interrupt(trial, reason)

    def _new_trial(self) -> Trial | None:
        number, num_seeds = len(self.trials), self.section.seeds_per_config
        if number >= self._num_trials:
            return None
        configuration, seed_index = divmod(number, num_seeds)
        if seed_index:
            values = self.trials[number - seed_index].segments[0].values
        else:
            values = suggest_values(self.sweep, configuration)
        segment = TrialSegment(f"sweeps/{self._sweep.name}/t{number:03d}", values)
        trial = Trial(number, configuration, seed_index, [segment])
        self.trials.append(trial)
        return trial

    def _apply_promotions(self) -> None:
        """Continue, stop or replace the paused trials that are decided by now."""
        for promotion in decide_promotions(self.sweep):
            trial = self.trials[promotion.number]
            trial.last_decision, reason = "continue", promotion.reason
            if promotion.action == "stop":
                self._change(trial, "stopped", reason)
                continue
            if promotion.action == "copy":
                try:
                    trial.segments.append(self._copy_segment(trial, promotion))
                except OrchestratorError as error:
                    reason += f"; not copied, continues with its own state: {error}"
            self._change(trial, "waiting", reason)

    def _copy_segment(self, trial: Trial, promotion: Promotion) -> TrialSegment:
        """Build the segment of a copy. Raises OrchestratorError if the parent has no checkpoint."""
        assert promotion.parent is not None
        assert promotion.values is not None
        parent = self.trials[promotion.parent]
        return TrialSegment(
            f"{trial.segments[0].run}-{len(trial.segments)}",
            promotion.values,
            source_checkpoint=self._newest_checkpoint(parent.segments[-1].run),
            parent=parent.number,
            start_images=parent.images_seen,
        )

    def _interrupt(self, trial: Trial, reason: str) -> None:
        """Take a trial off its process before its end; it waits to resume if it may."""
        if trial.last_decision == "stop":
            self._change(trial, "stopped", trial.reason)
        elif self._out_of_time:
            self._change(trial, "stopped" if trial.results else "failed", self._stop_reason)
        else:
            is_pausing = trial.last_decision == "pause"
            self._change(trial, "waiting", trial.reason if is_pausing else reason)

    def _change(self, trial: Trial, status: Status, reason: str = "") -> None:
        started_at = self._started_at.pop(trial.number, None) if status != "running" else None
        if started_at is not None:
            trial.runtime_s += self._clock() - started_at
        trial.status, trial.reason = status, reason
        self._save(trial)


def _is_unstarted_copy(trial: Trial) -> bool:
    segment = trial.segments[-1]
    is_copy = segment.source_checkpoint is not None
    return is_copy and segment.mlflow_run_id is None and not trial.is_over
