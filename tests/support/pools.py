"""Simulated pool of trial processes with a driver that can be killed at any write.

The processes train as real ones do: a result is reported before its step is saved, a restarted
process resumes from its newest checkpoint, and only the newest checkpoints of a run are kept.
"""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.search_space import num_configurations
from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.metric_windows import MetricWindow
from orchestrator.sweeps.records import Status, Sweep, Trial
from orchestrator.sweeps.study import Study
from support.trial_records import parse_trial

TOTAL, EVERY, STEP = 900, 100, 50
SPACE = {"rate": {"loguniform": [1e-5, 1e-1]}, "gamma": {"uniform": [0.0, 1.0]}}
KEPT = 1
"""Newest checkpoints of a run that are kept."""
STATUS_AFTER: dict[str, Status] = {"stop": "stopped", "pause": "paused"}
"""Status of a trial whose process has carried out an action."""


class Killed(BaseException):
    """The driver and all processes are killed."""


@dataclass
class Disk:
    """What survives a driver: records of trials and checkpoints of runs."""

    records: dict[int, str] = field(default_factory=dict)
    checkpoints: dict[str, dict[int, float]] = field(default_factory=dict)
    """Run -> images seen -> state, for each run that has started."""
    history: list[tuple[int, str]] = field(default_factory=list)
    """Number and record of each write, in order."""
    writes: int = 0
    fuse: int | None = None
    """The driver is killed right after this many writes."""

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
        return [parse_trial(text) for text in self.records.values()]

    def wrote(self) -> None:
        self.writes += 1
        if self.writes == self.fuse:
            raise Killed


def make_sweep(records: list[Trial] | None = None, /, **section: Any) -> Sweep:
    given = SweepSection.model_validate({"metric": "m", "space": SPACE, "trials": 4} | section)
    total = num_configurations(given) * given.seeds_per_config
    return Sweep("s", "j", given, TOTAL, records or [], num_trials=total)


def make_study(disk: Disk, **section: Any) -> Study:
    clock = itertools.count(step=2.0)
    return Study(make_sweep(disk.trials(), **section), disk.save, disk.newest, lambda: next(clock))


def after(state: float, values: Mapping[str, Value], images: int) -> float:
    """One step: the state depends on all values and images so far."""
    rate, gamma = float(str(values["rate"])), float(str(values["gamma"]))
    aim = abs(math.log10(rate) + 3) + (gamma - 0.4) ** 2
    return 0.9 * state + 0.1 * aim + 0.01 * math.sin(images * (1 + gamma))


@dataclass
class Pool:
    """Driver with a study and ``size`` processes, which take turns in an order drawn by ``rng``."""

    disk: Disk
    section: dict[str, Any]
    size: int = 1
    rng: random.Random = field(default_factory=random.Random)
    broken: Callable[[int, int], bool] = lambda number, images: False
    """(number, images): whether a trial diverges there."""
    at_turn: Callable[["Pool", int], None] = lambda pool, turn: None
    """Called before each turn."""
    study: Study = field(init=False)
    processes: dict[int, Iterator[None]] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        sweep = make_sweep(self.disk.trials(), **self.section)
        clock = itertools.count(step=2.0)
        self.study = Study(sweep, self.disk.save, self.disk.newest, lambda: next(clock))

    def run(self) -> "Pool":
        for turn in range(100_000):
            self.at_turn(self, turn)
            while (
                len(self.processes) < self.size and (trial := self.study.next_trial()) is not None
            ):
                self.started.append(trial.number)
                self.processes[trial.number] = self.process(trial)
            if not self.processes:
                assert self.study.is_over, "nothing runs and there is nothing to run"
                return self
            number = self.rng.choice(sorted(self.processes))
            if next(self.processes[number], "over") == "over":
                self.processes.pop(number, None)
        raise AssertionError("the sweep does not end")

    def process(self, trial: Trial) -> Iterator[None]:
        """One trial in its process; it yields to others after each action."""
        study, disk, segment, number = self.study, self.disk, trial.segments[-1], trial.number
        window = MetricWindow(("m",), EVERY, TOTAL, trial.images_seen)
        saved = disk.checkpoints.get(segment.run, {})
        if segment.run in disk.checkpoints:
            asked = study.requested_action(number, max(saved, default=0))
            if asked is not None and asked.action != "continue":
                study.record_end(number, STATUS_AFTER[asked.action], asked.reason)
                return
        elif segment.source_checkpoint is not None:
            images, state = disk.state_at(segment.source_checkpoint)
            assert images == segment.start_images
            disk.save_state(segment.run, images, state)
        else:
            disk.checkpoints[segment.run] = {}
        images = max(disk.checkpoints[segment.run], default=0)
        state = disk.checkpoints[segment.run].get(images, 5.0)
        yield
        study.record_start(number, f"mlflow-{segment.run}")
        yield
        while images < TOTAL:
            images, state = images + STEP, after(state, segment.values, images)
            if self.broken(number, images):
                study.record_end(number, "diverged", "no longer finite")
                return
            decision = None
            for result in window.add(images, {"m": state}):
                asked = study.report_result(number, *result)
                decision = asked if asked.action != "continue" else None
                yield
            decision = decision or study.requested_action(number, images)
            if decision is not None or images % EVERY == 0:
                disk.save_state(segment.run, images, state)
                yield
            if decision is not None:
                study.record_end(number, STATUS_AFTER[decision.action], decision.reason)
                return
        study.record_end(number, "finished")


def outcome(disk: Disk, orders: bool = False) -> list[Any]:
    """Everything that two equal sweeps have in common, for each trial."""
    found: list[Any] = []
    for trial in sorted(disk.trials(), key=lambda trial: trial.number):
        results = [(r.images_seen, r.values, r.order * orders) for r in trial.results]
        segments = [
            (s.run, s.values, s.source_checkpoint, s.parent, s.start_images) for s in trial.segments
        ]
        identity = (trial.number, trial.configuration, trial.seed_index)
        found.append((*identity, trial.status, trial.reason, results, segments))
    return found


def is_over(text: str) -> bool:
    return bool(parse_trial(text).is_over)


def check_history(disk: Disk) -> None:
    """Check that a finished trial is recorded once and that results are only appended."""
    last: dict[int, str] = {}
    for number, text in disk.history:
        before = last.get(number)
        if before is not None:
            assert not is_over(before), "a trial ended twice"
            results = json.loads(before)["results"]
            assert json.loads(text)["results"][: len(results)] == results
        last[number] = text
    assert all(is_over(text) for text in last.values()), "a trial was lost"


SECTIONS: dict[str, dict[str, Any]] = {
    "fifo": {"scheduler": "fifo", "trials": 3},
    "fifo with two seeds": {"scheduler": "fifo", "trials": 2, "seeds_per_config": 2},
    "asha": {"scheduler": "asha", "trials": 7, "reduction_factor": 2},
    "median": {"scheduler": "median", "trials": 7},
    "hyperband": {"scheduler": "hyperband", "trials": 7},
    "pbt": {"scheduler": "pbt", "trials": 4, "grace_images": 200, "quantile": 0.5},
    "pbt with many intervals": {"scheduler": "pbt", "trials": 3, "grace_images": 100},
    "tpe": {"scheduler": "asha", "trials": 6, "searcher": "tpe"},
    "grid": {"searcher": "grid", "space": {**SPACE, "gamma": {"grid": [0.1, 0.9, 0.4]}}},
}


def number_of(trial: Trial | None) -> int | None:
    return None if trial is None else trial.number
