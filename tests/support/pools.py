"""A pool of made-up processes that carries out a sweep, and is killed at any write.

The processes train as real ones do: a look is told before its step is saved, a process that begins
again goes on from its newest checkpoint, and only the newest checkpoints of a run are kept.
"""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.metric_windows import Looks
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.searchers import num_configurations
from orchestrator.sweeps.study import Study

TOTAL, EVERY, STEP = 900, 100, 50
SPACE = {"rate": {"loguniform": [1e-5, 1e-1]}, "gamma": {"uniform": [0.0, 1.0]}}
KEPT = 1
"""Checkpoints of a run that are not deleted when there is a newer one."""


class Killed(BaseException):
    """The driver's machine is gone, and all processes with it."""


@dataclass
class Disk:
    """What outlives a driver: records of trainings and checkpoints of runs."""

    records: dict[int, str] = field(default_factory=dict)
    checkpoints: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of each run that has begun: the state after so many images."""
    history: list[tuple[int, str]] = field(default_factory=list)
    """The records in the order in which they were written."""
    writes: int = 0
    fuse: int | None = None
    """The driver is killed right after so many writes."""

    def save(self, trial: Trial) -> None:
        self.records[trial.number] = json.dumps(trial.to_json())
        self.history.append((trial.number, self.records[trial.number]))
        self.wrote()

    def save_state(self, run: str, images: int, state: float) -> None:
        found = {**self.checkpoints.get(run, {}), images: state}
        self.checkpoints[run] = {n: found[n] for n in sorted(found)[-KEPT:]}
        self.wrote()

    def newest(self, run: str) -> str:
        images = max(self.checkpoints[run])
        return f"{run}/checkpoints/{images}"

    def state_at(self, source: str) -> tuple[int, float]:
        run, _, images = source.partition("/checkpoints/")
        return int(images), self.checkpoints[run][int(images)]

    def trials(self) -> list[Trial]:
        return [Trial.from_json(json.loads(text)) for text in self.records.values()]

    def wrote(self) -> None:
        self.writes += 1
        if self.writes == self.fuse:
            raise Killed


def sweep_of(tried: list[Trial] | None = None, **section: Any) -> Sweep:
    given = SweepSection.model_validate({"metric": "m", "space": SPACE, "trials": 4} | section)
    total = num_configurations(given) * given.seeds_per_config
    return Sweep("s", "j", given, TOTAL, tried or [], num_trials=total)


def study_of(disk: Disk, **section: Any) -> Study:
    clock = itertools.count(step=2.0)
    return Study(sweep_of(disk.trials(), **section), disk.save, disk.newest, lambda: next(clock))


def after(state: float, values: Mapping[str, Value], images: int) -> float:
    """A step: what a training has become depends on all its values so far, and on its images."""
    rate, gamma = float(str(values["rate"])), float(str(values["gamma"]))
    aim = abs(math.log10(rate) + 3) + (gamma - 0.4) ** 2
    return 0.9 * state + 0.1 * aim + 0.01 * math.sin(images * (1 + gamma))


@dataclass
class Pool:
    """A driver: a study and so many processes, whose turns come in an order drawn by ``rng``."""

    disk: Disk
    section: dict[str, Any]
    size: int = 1
    rng: random.Random = field(default_factory=random.Random)
    broken: Callable[[int, int], bool] = lambda number, images: False
    """Whether a training diverges there."""
    at_turn: Callable[["Pool", int], None] = lambda pool, turn: None
    """Called before each turn."""
    study: Study = field(init=False)
    processes: dict[int, Iterator[None]] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        sweep = sweep_of(self.disk.trials(), **self.section)
        clock = itertools.count(step=2.0)
        self.study = Study(sweep, self.disk.save, self.disk.newest, lambda: next(clock))

    def run(self) -> "Pool":
        for turn in range(100_000):
            self.at_turn(self, turn)
            while len(self.processes) < self.size and (trial := self.study.next()) is not None:
                self.begun.append(trial.number)
                self.processes[trial.number] = self.process(trial)
            if not self.processes:
                assert self.study.is_over, "nothing runs, and there is nothing to run"
                return self
            number = self.rng.choice(sorted(self.processes))
            if next(self.processes[number], "over") == "over":
                self.processes.pop(number, None)
        raise AssertionError("it never ends")

    def process(self, trial: Trial) -> Iterator[None]:
        """One training in its process, with a turn for others after each thing that it does."""
        study, disk, leg, number = self.study, self.disk, trial.legs[-1], trial.number
        looks = Looks(("m",), EVERY, TOTAL, trial.images_seen)
        saved = disk.checkpoints.get(leg.run, {})
        if leg.run in disk.checkpoints:
            said = study.wish_for(number, max(saved, default=0))
            if said is not None and said.action != "go on":
                study.ended(number, "stopped" if said.action == "stop" else "paused", said.why)
                return
        elif leg.source is not None:
            images, state = disk.state_at(leg.source)
            assert images == leg.from_images
            disk.save_state(leg.run, images, state)
        else:
            disk.checkpoints[leg.run] = {}
        images = max(disk.checkpoints[leg.run], default=0)
        state = disk.checkpoints[leg.run].get(images, 5.0)
        yield
        study.started(number, f"mlflow-{leg.run}")
        yield
        while images < TOTAL:
            images, state = images + STEP, after(state, leg.values, images)
            if self.broken(number, images):
                study.ended(number, "diverged", "no longer finite")
                return
            verdict = None
            for look in looks.add(images, {"m": state}):
                said = study.look(number, *look)
                verdict = said if said.action != "go on" else None
                yield
            verdict = verdict or study.wish_for(number, images)
            if verdict is not None or images % EVERY == 0:
                disk.save_state(leg.run, images, state)
                yield
            if verdict is not None:
                study.ended(
                    number, "stopped" if verdict.action == "stop" else "paused", verdict.why
                )
                return
        study.ended(number, "finished")


def outcome(disk: Disk, orders: bool = False) -> list[Any]:
    """All that is to be the same: what became of each training, and how."""
    return [
        (
            trial.number, trial.configuration, trial.repeat, trial.status, trial.why,
            [(look.images_seen, look.values, look.order * orders) for look in trial.looks],
            [(leg.run, leg.values, leg.source, leg.parent, leg.from_images) for leg in trial.legs],
        )
        for trial in sorted(disk.trials(), key=lambda trial: trial.number)
    ]  # fmt: skip


def is_over(text: str) -> bool:
    return bool(Trial.from_json(json.loads(text)).is_over)


def check_history(disk: Disk) -> None:
    """What is over stays as it is, and is written down once; looks are added and never changed."""
    last: dict[int, str] = {}
    for number, text in disk.history:
        before = last.get(number)
        if before is not None:
            assert not is_over(before), "it ended twice"
            looks = json.loads(before)["looks"]
            assert json.loads(text)["looks"][: len(looks)] == looks
        last[number] = text
    assert all(is_over(text) for text in last.values()), "it was lost"


SECTIONS: dict[str, dict[str, Any]] = {
    "fifo": {"scheduler": "fifo", "trials": 3},
    "fifo with repeats": {"scheduler": "fifo", "trials": 2, "seeds_per_config": 2},
    "asha": {"scheduler": "asha", "trials": 7, "reduction_factor": 2},
    "median": {"scheduler": "median", "trials": 7},
    "hyperband": {"scheduler": "hyperband", "trials": 7},
    "pbt": {"scheduler": "pbt", "trials": 4, "grace_images": 200, "quantile": 0.5},
    "pbt with many rounds": {"scheduler": "pbt", "trials": 3, "grace_images": 100},
    "tpe": {"scheduler": "asha", "trials": 6, "searcher": "tpe"},
    "grid": {"searcher": "grid", "space": {**SPACE, "gamma": {"grid": [0.1, 0.9, 0.4]}}},
}


def number_of(trial: Trial | None) -> int | None:
    return None if trial is None else trial.number
