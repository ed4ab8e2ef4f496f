"""Decides what to do when a training goes astray: on numbers alone, the same on every rank.

An update whose gradient is not finite is left out. If that goes on, the training goes back to the
newest checkpoint with a lower learning rate; when that has been done too often, it ends.

Every rank decides by itself and none asks another: a gradient that is averaged over the ranks is
the same on all of them, and not finite as soon as that of one is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from orchestrator.config.job import GuardSection
from orchestrator.models.base import Sign

Action = Literal["go", "skip", "back", "stop"]
NORMS = 100
"""Updates over which a phase's norm is averaged; before so many, none counts as a spike."""
DIVERSITY = "samples/diversity"
LEAST_DIVERSITY = 0.1
POINTS = 10
"""A sign must hold at so many logs in a row at least: each tells of one batch."""


class UpdateDecision(NamedTuple):
    """What is to be done, and why."""

    action: Action
    """go: update; skip: leave the update out; back: to the newest checkpoint; stop: give up."""
    reason: str = ""


class RollbackRequired(Exception):
    """The training cannot go on from where it is; raised on every rank at the same place."""

    def __init__(self, verdict: UpdateDecision) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class DivergenceGuard:
    """Judges each update by the norm of its gradient, and counts what was done about them."""

    def __init__(self, settings: GuardSection) -> None:
        self.settings = settings
        self.learning_rate_factor = 1.0
        """Factor on all learning rates, for having gone back."""
        self.rollbacks = 0
        self.skipped = 0
        """Updates left out so far."""
        self._in_a_row: dict[str, int] = {}
        self._norms: dict[str, tuple[int, float]] = {}
        """Of each phase, how many norms were sound and their running mean."""

    @property
    def watching(self) -> bool:
        """Whether gradients are judged at all."""
        return self.settings.gradients == "watch"

    @property
    def last_update_skipped(self) -> bool:
        """Whether the last update of a phase was left out: its weights may be ruined already."""
        return any(self._in_a_row.values())

    def judge(self, phase: str, norm: float) -> UpdateDecision:
        """What to do about the next update of ``phase``, whose gradient has this norm."""
        wrong = self._wrong_with(phase, norm)
        if wrong is None:
            self._in_a_row[phase] = 0
            if self.settings.max_grad_norm_ratio is not None:
                count, mean = self._norms.get(phase, (0, 0.0))
                share = 1 / min(count + 1, NORMS)
                self._norms[phase] = count + 1, mean * (1 - share) + norm * share
            return UpdateDecision("go")
        self.skipped += 1
        times = self._in_a_row[phase] = self._in_a_row.get(phase, 0) + 1
        if times <= self.settings.max_consecutive_skips:
            return UpdateDecision("skip", wrong)
        return self.astray(f"{wrong}, {times} times in a row" if times > 1 else wrong)

    def _wrong_with(self, phase: str, norm: float) -> str | None:
        if not math.isfinite(norm):
            return f"the gradient of {phase} is not finite (its norm is {norm})"
        count, mean = self._norms.get(phase, (0, 0.0))
        spike = self.settings.max_grad_norm_ratio
        if spike is not None and count >= NORMS and norm > spike * mean:
            return (
                f"the norm of the gradient of {phase}, {norm:.3g}, is more than {spike:g} times "
                f"its mean of {mean:.3g}"
            )
        return None

    def astray(self, reason: str) -> UpdateDecision:
        """What to do where leaving out an update does not help."""
        again = self.watching and self.rollbacks < self.settings.max_rollbacks
        return UpdateDecision("back" if again else "stop", reason)

    def metrics(self) -> dict[str, float]:
        """What has been done so far, as points of curves."""
        if not self.watching:
            return {}
        return {"guard/skipped": float(self.skipped), "guard/rollbacks": float(self.rollbacks)}

    def what_was_tried(self) -> str:
        """For the last words: what was done, and what may help."""
        done = "guard.gradients is off, so no update was left out"
        if self.watching:
            skips, rollbacks = self.settings.max_consecutive_skips, self.settings.max_rollbacks
            done = (
                f"{self.skipped} updates were left out (guard.max_consecutive_skips {skips} in a "
                f"row), and the training went back {self.rollbacks} of {rollbacks} times "
                f"(guard.max_rollbacks), to {self.learning_rate_factor:g} of the learning rate"
            )
        return f"{done}; a lower model.learning_rate or train.max_grad_norm: 1 often helps"

    def rolled_back(self, remembered: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, which remembers this, with a lower learning rate.

        What was done about the updates is not forgotten, and each phase may be left out as often
        as at first.
        """
        done = self.rollbacks + 1, self.learning_rate_factor, self.skipped
        self.load(remembered)
        self.rollbacks, factor, self.skipped = done
        self.learning_rate_factor = factor * self.settings.learning_rate_factor
        self._in_a_row = {}

    def state(self) -> dict[str, Any]:
        """All that the next verdict depends on, fit for JSON."""
        return {
            "learning_rate_factor": self.learning_rate_factor,
            "rollbacks": self.rollbacks,
            "skipped": self.skipped,
            "in_a_row": dict(self._in_a_row),
            "norms": {phase: list(values) for phase, values in self._norms.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave; from an empty one as at first."""
        self.learning_rate_factor = state.get("learning_rate_factor", 1.0)
        self.rollbacks = state.get("rollbacks", 0)
        self.skipped = state.get("skipped", 0)
        self._in_a_row = dict(state.get("in_a_row", {}))
        self._norms = {name: (n, mean) for name, (n, mean) in state.get("norms", {}).items()}


class CollapseDetector:
    """Tells from metrics that a generator has collapsed, or that one network has won for good.

    Diversity counts at once, when it falls below a tenth of that of real images after it was above:
    many generators begin with images that are all alike. A model's own signs must last.
    """

    def __init__(self, signs: Sequence[Sign], stretch: int) -> None:
        """``stretch`` is for how many images a sign must last."""
        self._signs, self._stretch = signs, stretch
        self._since: dict[str, tuple[int, int]] = {}
        """Of each sign that holds, the images seen at its first point and the number of points."""
        self._was_diverse = False
        self._on: set[str] = set()
        self._told: set[str] = set()

    @property
    def on(self) -> float:
        """1 if there is a sign of collapse now, else 0."""
        return float(bool(self._on))

    def see(self, metrics: Mapping[str, float], images_seen: int) -> list[str]:
        """Take in new points of curves; a line for each sign that was not there before.

        A sign whose metrics are not among them stays as it is.
        """
        meanings = {}
        for sign in self._signs:
            values = [metrics[name] for name in sign.metrics if name in metrics]
            if len(values) == len(sign.metrics):
                self._set(sign.name, on=self._lasts(sign, min(values), images_seen))
                meanings[sign.name] = (
                    f"{' and '.join(sign.metrics)} at {sign.least:g} or above for "
                    f"{images_seen - self._since.get(sign.name, (images_seen, 0))[0]:,} images: "
                    f"{sign.meaning}"
                )
        if DIVERSITY in metrics:
            diverse = metrics[DIVERSITY] >= LEAST_DIVERSITY
            self._was_diverse |= diverse
            self._set(DIVERSITY, on=self._was_diverse and not diverse)
            meanings[DIVERSITY] = (
                f"{DIVERSITY} fell to {metrics[DIVERSITY]:.3g}: the samples differ less than a "
                f"tenth as much as real images do, so the generator makes nearly one picture only"
            )
        new = sorted(self._on - self._told)
        self._told |= self._on
        return [meanings[name] for name in new]

    def _lasts(self, sign: Sign, value: float, images_seen: int) -> bool:
        if value < sign.least:
            self._since.pop(sign.name, None)
            return False
        first, points = self._since.get(sign.name, (images_seen, 0))
        self._since[sign.name] = first, points + 1
        return points + 1 >= POINTS and images_seen - first >= self._stretch

    def _set(self, name: str, *, on: bool) -> None:
        self._on = self._on | {name} if on else self._on - {name}

    def state(self) -> dict[str, Any]:
        """All that ``see`` depends on, fit for JSON."""
        return {
            "since": {name: list(values) for name, values in self._since.items()},
            "was_diverse": self._was_diverse,
            "on": sorted(self._on),
            "told": sorted(self._told),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave; from an empty one as at first."""
        self._since = {name: (a, b) for name, (a, b) in state.get("since", {}).items()}
        self._was_diverse = state.get("was_diverse", False)
        self._on, self._told = set(state.get("on", ())), set(state.get("told", ()))
