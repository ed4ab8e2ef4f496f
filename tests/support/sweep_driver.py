"""Sweeps made of records, and a driver of them without processes."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.early_stopping import Settlement, judge, settle
from orchestrator.sweeps.records import Leg, Look, Sweep, Trial

SPACE: dict[str, Any] = {
    "model.learning_rate": {"loguniform": [1e-5, 1e-2]},
    "model.gamma": {"uniform": [0.1, 0.9]},
    "model.channels": {"quniform": [16, 64, 8]},
    "model.depth": {"randint": [1, 4]},
    "model.norm": {"choice": ["batch", "group", None]},
}


def sweep_of(trials: Sequence[Trial] = (), total: int = 900, **section: Any) -> Sweep:
    num_trials = section.pop("num_trials", 0)
    block = SweepSection.model_validate({"metric": "m", "space": SPACE} | section)
    return Sweep("s", "j", block, total, trials, num_trials=num_trials)


def trial_of(number: int, *looks: tuple[int, float], status: str = "running", at: int = 0) -> Trial:
    """``at`` is the order of its first look."""
    values: dict[str, Value] = {
        "model.learning_rate": 1e-4 * (1 + number),
        "model.gamma": 0.5 / (1 + number),
        "model.channels": 32,
        "model.depth": 2,
        "model.norm": "batch",
        "model.other": number,
    }
    seen = [Look(images, (value, 0.0), at + i) for i, (images, value) in enumerate(looks)]
    return Trial(number, number, number, [Leg(f"r{number}", values)], status, looks=seen)  # type: ignore[arg-type]


def actions(settlements: Sequence[Settlement]) -> dict[int, str]:
    return {s.number: s.action for s in settlements}


# A driver without processes: it applies verdicts as they come, in an order drawn by ``rng``.


@dataclass
class Driver:
    sweep: Sweep
    num_trials: int
    value_of: Callable[[Trial, int], float]
    rng: random.Random
    strides: Sequence[int] = (50,)
    is_patient: bool = False
    """Whether it applies all of a settlement at once."""
    trials: list[Trial] = field(default_factory=list)
    saving: set[int] = field(default_factory=set)
    said: list[Settlement] = field(default_factory=list)
    looks: int = 0

    def records(self) -> Sweep:
        """In any order: it must not count."""
        trials = self.rng.sample(self.trials, len(self.trials))
        return replace(self.sweep, trials=trials, num_trials=self.num_trials)

    def run(self) -> None:
        while True:
            settlements = settle(self.records())
            if settlements:
                self.apply(settlements)
                continue
            moves = list(self.moves())
            if not moves:
                break
            self.rng.choice(moves)()
        assert len(self.trials) == self.num_trials
        assert all(trial.is_over for trial in self.trials), "they wait for each other"

    def moves(self) -> Iterator[Callable[[], None]]:
        if len(self.trials) < self.num_trials:
            yield lambda: self.trials.append(replace(trial_of(len(self.trials)), status="waiting"))
        for trial in self.trials:
            if trial.status == "waiting":
                yield lambda trial=trial: setattr(trial, "status", "running")  # type: ignore[misc]
            elif trial.number in self.saving:
                yield lambda trial=trial: self.save(trial)  # type: ignore[misc]
            elif trial.status == "running":
                yield lambda trial=trial: self.look(trial)  # type: ignore[misc]

    def save(self, trial: Trial) -> None:
        self.saving.remove(trial.number)
        trial.status = "paused"

    def look(self, trial: Trial) -> None:
        images = trial.images_seen + self.strides[trial.number % len(self.strides)]
        trial.looks.append(Look(images, (self.value_of(trial, images),), self.looks))
        self.looks += 1
        match judge(self.records(), trial).action:
            case "stop":
                trial.status = "stopped"
            case "pause":
                self.saving.add(trial.number)
        if images >= self.sweep.total_images:
            assert trial.number not in self.saving
            trial.status = "finished"

    def apply(self, settlements: list[Settlement]) -> None:
        """Part of it, as a driver that is lost on the way; the rest must stay as it was said."""
        count = len(settlements) if self.is_patient else self.rng.randint(1, len(settlements))
        chosen = self.rng.sample(settlements, count)
        for settlement in chosen:
            trial = next(t for t in self.trials if t.number == settlement.number)
            assert trial.status == "paused"
            trial.status = "stopped" if settlement.action == "stop" else "waiting"
            if settlement.action == "copy":
                assert settlement.values is not None
                leg = Leg("copy", settlement.values, parent=settlement.parent)
                trial.legs.append(leg)
        self.said += chosen
        rest = [s for s in settlements if s not in chosen]
        if self.sweep.section.scheduler == "asha":  # when these are over, others may go on
            rest = [s for s in rest if s.action == "stop"]
            assert set(map(_key, rest)) <= set(map(_key, settle(self.records())))
        else:
            assert settle(self.records()) == rest


def _key(settlement: Settlement) -> tuple[int, str, str]:
    return settlement.number, settlement.action, settlement.why


def table(key: object, bad: float = 0.1) -> Callable[[Trial, int], float]:
    """Values that depend on the training and its images alone; some are not finite."""

    def value_of(trial: Trial, images: int) -> float:
        rng = random.Random(f"{key}/{trial.number}/{images}")
        return rng.choice([math.nan, math.inf, -math.inf]) if rng.random() < bad else rng.random()

    return value_of
