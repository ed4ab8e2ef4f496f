"""Decides what to do about each update, from numbers alone and thus the same on every rank.

An update whose gradient is not finite is skipped. If that lasts, training rolls back to the newest
checkpoint with a lower learning rate; after too many rollbacks it stops.

No rank asks another: a gradient that is averaged over the ranks is the same on all of them, and
not finite as soon as that of one rank is.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from orchestrator.config.job import GuardSection

Action = Literal["continue", "skip", "rollback", "stop"]
NORM_WINDOW = 100
"""Updates over which a phase's norm is averaged; before so many, no norm counts as a spike."""


class UpdateDecision(NamedTuple):
    """What to do about an update, and why."""

    action: Action
    reason: str = ""


class RollbackRequired(Exception):
    """Training cannot continue from its present state; raised on every rank at the same place."""

    def __init__(self, decision: UpdateDecision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


class DivergenceGuard:
    """Decides about each update by the norm of its gradient, and counts what was done."""

    def __init__(self, settings: GuardSection) -> None:
        self.settings = settings
        self.learning_rate_factor = 1.0
        """Factor on all learning rates; each rollback lowers it."""
        self.rollbacks = self.skipped_updates = 0
        self._consecutive_skips: dict[str, int] = {}
        self._norms: dict[str, tuple[int, float]] = {}
        """Number of accepted norms and their running mean, by phase."""

    @property
    def is_enabled(self) -> bool:
        """Whether gradients are checked at all."""
        return self.settings.gradients == "watch"

    @property
    def last_update_skipped(self) -> bool:
        """Whether the last update of any phase was skipped: its weights may be broken already."""
        return any(self._consecutive_skips.values())

    def decide(self, phase: str, norm: float) -> UpdateDecision:
        """Decide about the next update of ``phase``, whose gradient has this norm."""
        problem = self._find_problem(phase, norm)
        if problem is None:
            self._consecutive_skips[phase] = 0
            if self.settings.max_grad_norm_ratio is not None:
                count, mean = self._norms.get(phase, (0, 0.0))
                weight = 1 / min(count + 1, NORM_WINDOW)
                self._norms[phase] = count + 1, mean * (1 - weight) + norm * weight
            return UpdateDecision("continue")
        self.skipped_updates += 1
        times = self._consecutive_skips[phase] = self._consecutive_skips.get(phase, 0) + 1
        if times <= self.settings.max_consecutive_skips:
            return UpdateDecision("skip", problem)
        return self.escalate(f"{problem}, {times} times in a row" if times > 1 else problem)

    def _find_problem(self, phase: str, norm: float) -> str | None:
        if not math.isfinite(norm):
            return f"the gradient of {phase} is not finite (its norm is {norm})"
        count, mean = self._norms.get(phase, (0, 0.0))
        ratio = self.settings.max_grad_norm_ratio
        if ratio is not None and count >= NORM_WINDOW and norm > ratio * mean:
            return (
                f"the norm of the gradient of {phase}, {norm:.3g}, is more than {ratio:g} times "
                f"its mean of {mean:.3g}"
            )
        return None

    def escalate(self, reason: str) -> UpdateDecision:
        """Decide what to do where skipping an update does not help: roll back or stop."""
        may_roll_back = self.is_enabled and self.rollbacks < self.settings.max_rollbacks
        return UpdateDecision("rollback" if may_roll_back else "stop", reason)

    def metrics(self) -> dict[str, float]:
        """Return the counters as metrics."""
        if not self.is_enabled:
            return {}
        return {
            "guard/skipped_updates": float(self.skipped_updates),
            "guard/rollbacks": float(self.rollbacks),
        }

    def describe_attempts(self) -> str:
        """Describe, for the final error, what was done and what may help."""
        settings = self.settings
        done = (
            f"{self.skipped_updates} updates were skipped (guard.max_consecutive_skips "
            f"{settings.max_consecutive_skips} in a row), and training was rolled back "
            f"{self.rollbacks} of {settings.max_rollbacks} times (guard.max_rollbacks), to "
            f"{self.learning_rate_factor:g} of the learning rate"
            if self.is_enabled
            else "guard.gradients is off, so no update was skipped"
        )
        return f"{done}; a lower model.learning_rate or train.max_grad_norm: 1 often helps"

    def rolled_back(self, before: Mapping[str, Any]) -> None:
        """Count a rollback and lower the learning rate, after a checkpoint was loaded.

        The counters continue from ``before``, the ``state_dict`` of before the checkpoint was
        loaded. Each phase may be skipped as often as at first.
        """
        factor = self.settings.learning_rate_factor
        self.learning_rate_factor = before["learning_rate_factor"] * factor
        self.rollbacks = before["rollbacks"] + 1
        self.skipped_updates = before["skipped_updates"]
        self._consecutive_skips = {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next decision depends on, as values that JSON can hold."""
        return {
            "learning_rate_factor": self.learning_rate_factor,
            "rollbacks": self.rollbacks,
            "skipped_updates": self.skipped_updates,
            "consecutive_skips": dict(self._consecutive_skips),
            "norms": {phase: list(values) for phase, values in self._norms.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an empty mapping means the start of a run."""
        self.learning_rate_factor = state.get("learning_rate_factor", 1.0)
        self.rollbacks = state.get("rollbacks", 0)
        self.skipped_updates = state.get("skipped_updates", 0)
        self._consecutive_skips = dict(state.get("consecutive_skips", {}))
        self._norms = {name: (n, mean) for name, (n, mean) in state.get("norms", {}).items()}
