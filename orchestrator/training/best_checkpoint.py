"""The metrics of each checkpoint's step, and which is the best: `register.best` of a job.

The choice is a part of the training state, so a run that was killed, stopped or rolled back makes
the choice of the uninterrupted one. A checkpoint counts with the metric's value at its own step.
Metrics of an evaluation come later (runs/best_evaluation.py); this keeps those of the validation.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.config.register_section import BestSection
from orchestrator.training.state import BEST_CHECKPOINT


class ScoredCheckpoint(NamedTuple):
    """A checkpoint, and the metrics of its step."""

    images_seen: int
    metrics: dict[str, float]
    """The metric that it is judged by, and those of the validation; all finite."""
    standard_errors: dict[str, float]
    """Of those that are means over images of the validation set."""


class BestCheckpoint:
    """Keeps the metrics of the step, and finds the best checkpoint if the job asks for it.

    Every rank makes each call, with the same values.
    """

    def __init__(self, settings: BestSection | None) -> None:
        self._settings = settings
        self._metric = settings.metric if settings else None
        self._now = ScoredCheckpoint(0, {}, {})
        self.best: ScoredCheckpoint | None = None
        """None before the first checkpoint with a finite value."""

    @property
    def is_wanted(self) -> bool:
        """Whether the job asks for the best checkpoint, and not for the newest."""
        return self._settings is not None

    def add(
        self,
        values: Mapping[str, float],
        images_seen: int,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        """Add metrics that were logged at ``images_seen``."""
        if images_seen != self._now.images_seen:
            self._now = ScoredCheckpoint(images_seen, {}, {})
        self._now.standard_errors.update(standard_errors or {})
        self._now.metrics.update(
            (name, value)
            for name, value in values.items()
            if math.isfinite(value) and (name == self._metric or name.startswith("validation/"))
        )

    def judge(self, images_seen: int) -> None:
        """Compare the checkpoint that is saved next with the best one, which wins a tie."""
        if self._settings is None or self._now.images_seen != images_seen:
            return
        metric = self._settings.metric
        if metric not in self._now.metrics:
            return
        sign = 1 if self._settings.mode == "max" else -1
        best = -math.inf if self.best is None else sign * self.best.metrics[metric]
        if sign * self._now.metrics[metric] > best:
            now = self._now
            self.best = ScoredCheckpoint(images_seen, dict(now.metrics), dict(now.standard_errors))

    def state_dict(self) -> dict[str, Any]:
        """Return the best checkpoint and the metrics of the step, as values that JSON can hold."""
        best = None if self.best is None else self.best._asdict()
        return {"best": best, "now": self._now._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an empty mapping means the start of a run."""
        best = state.get("best")
        self.best = None if best is None else _scored(best)
        self._now = _scored(state.get("now", {"images_seen": 0, "metrics": {}}))


def score_of_step(stateful: Mapping[str, Mapping[str, Any]], images_seen: int) -> ScoredCheckpoint:
    """Return the metrics at the step of a state, from its stateful parts, where they are known."""
    now = stateful.get(BEST_CHECKPOINT, {}).get("now", {"images_seen": -1})
    if now["images_seen"] != images_seen:
        return ScoredCheckpoint(images_seen, {}, {})
    return _scored(now)


def _scored(state: Mapping[str, Any]) -> ScoredCheckpoint:
    """Restore what ``_asdict`` returned; older checkpoints have no standard errors."""
    return ScoredCheckpoint(**{"standard_errors": {}, **state})


def best_images(stateful: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return the images seen at the best checkpoint up to a state, from its stateful parts."""
    best = stateful.get(BEST_CHECKPOINT, {}).get("best")
    return None if best is None else int(best["images_seen"])
