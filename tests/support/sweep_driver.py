"""Sweeps made from records, and a driver without processes."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.early_stopping import decide_trial
from orchestrator.sweeps.promotion import Promotion, decide_promotions
from orchestrator.sweeps.records import IntermediateResult, Sweep, Trial, TrialSegment

SPACE: dict[str, Any] = {
    "model.learning_rate": {"loguniform": [1e-5, 1e-2]},
    "model.gamma": {"uniform": [0.1, 0.9]},
    "model.channels": {"quniform": [16, 64, 8]},
    "model.depth": {"randint": [1, 4]},
    "model.norm": {"choice": ["batch", "group", None]},
}


def make_sweep(trials: Sequence[Trial] = (), total: int = 900, **section: Any) -> Sweep:
    num_trials = section.pop("num_trials", 0)
    block = SweepSection.model_validate({"metric": "m", "space": SPACE} | section)
    return Sweep("s", "j", block, total, trials, num_trials=num_trials)


def make_trial(
    number: int, *results: tuple[int, float], status: str = "running", at: int = 0
) -> Trial:
    """Make a trial; ``at`` is the order of its first result."""
    values: dict[str, Value] = {
        "model.learning_rate": 1e-4 * (1 + number),
        "model.gamma": 0.5 / (1 + number),
        "model.channels": 32,
        "model.depth": 2,
        "model.norm": "batch",
        "model.other": number,
    }
    seen = [
        IntermediateResult(images, (value, 0.0), at + i)
        for i, (images, value) in enumerate(results)
    ]
    return Trial(number, number, number, [TrialSegment(f"r{number}", values)], status, results=seen)  # type: ignore[arg-type]


def actions(promotions: Sequence[Promotion]) -> dict[int, str]:
    return {s.number: s.action for s in promotions}


@dataclass
class Driver:
    """Driver without processes: it applies decisions in an order drawn by ``rng``."""

    sweep: Sweep
    num_trials: int
    value_of: Callable[[Trial, int], float]
    rng: random.Random
    strides: Sequence[int] = (50,)
    applies_all: bool = False
    """Whether it applies all promotions at once."""
    trials: list[Trial] = field(default_factory=list)
    saving: set[int] = field(default_factory=set)
    applied: list[Promotion] = field(default_factory=list)
    results: int = 0

    def records(self) -> Sweep:
        """The sweep with its trials in random order, which must not matter."""
        trials = self.rng.sample(self.trials, len(self.trials))
        return replace(self.sweep, trials=trials, num_trials=self.num_trials)

    def run(self) -> None:
        while True:
            promotions = decide_promotions(self.records())
            if promotions:
                self.apply(promotions)
                continue
            moves = list(self.moves())
            if not moves:
                break
            self.rng.choice(moves)()
        assert len(self.trials) == self.num_trials
        assert all(trial.is_over for trial in self.trials), "trials wait for each other for ever"

    def moves(self) -> Iterator[Callable[[], None]]:
        if len(self.trials) < self.num_trials:
            yield lambda: self.trials.append(
                replace(make_trial(len(self.trials)), status="waiting")
            )
        for trial in self.trials:
            if trial.status == "waiting":
                yield lambda trial=trial: setattr(trial, "status", "running")  # type: ignore[misc]
            elif trial.number in self.saving:
                yield lambda trial=trial: self.save(trial)  # type: ignore[misc]
            elif trial.status == "running":
                yield lambda trial=trial: self.report_result(trial)  # type: ignore[misc]

    def save(self, trial: Trial) -> None:
        self.saving.remove(trial.number)
        trial.status = "paused"

    def report_result(self, trial: Trial) -> None:
        images = trial.images_seen + self.strides[trial.number % len(self.strides)]
        trial.results.append(
            IntermediateResult(images, (self.value_of(trial, images),), self.results)
        )
        self.results += 1
        match decide_trial(self.records(), trial).action:
            case "stop":
                trial.status = "stopped"
            case "pause":
                self.saving.add(trial.number)
        if images >= self.sweep.total_images:
            assert trial.number not in self.saving
            trial.status = "finished"

    def apply(self, promotions: list[Promotion]) -> None:
        """Apply some promotions, like a driver that dies on the way; the rest must not change."""
        count = len(promotions) if self.applies_all else self.rng.randint(1, len(promotions))
        chosen = self.rng.sample(promotions, count)
        for promotion in chosen:
            trial = next(t for t in self.trials if t.number == promotion.number)
            assert trial.status == "paused"
            trial.status = "stopped" if promotion.action == "stop" else "waiting"
            if promotion.action == "copy":
                assert promotion.values is not None
                segment = TrialSegment("copy", promotion.values, parent=promotion.parent)
                trial.segments.append(segment)
        self.applied += chosen
        rest = [s for s in promotions if s not in chosen]
        if self.sweep.section.scheduler == "asha":
            # A stopped trial may make way for another promotion.
            rest = [s for s in rest if s.action == "stop"]
            assert set(map(_key, rest)) <= set(map(_key, decide_promotions(self.records())))
        else:
            assert decide_promotions(self.records()) == rest


def _key(promotion: Promotion) -> tuple[int, str, str]:
    return promotion.number, promotion.action, promotion.reason


def table(key: object, bad: float = 0.1) -> Callable[[Trial, int], float]:
    """Make values that depend only on the trial and its images; some are not finite."""

    def value_of(trial: Trial, images: int) -> float:
        rng = random.Random(f"{key}/{trial.number}/{images}")
        return rng.choice([math.nan, math.inf, -math.inf]) if rng.random() < bad else rng.random()

    return value_of
