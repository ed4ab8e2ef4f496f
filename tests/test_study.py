"""The decisions of a sweep: carried out by a pool of made-up processes, and killed at each write.

The processes train as real ones do: a look is told before its step is saved, a process that begins
again goes on from its newest checkpoint, and only the newest checkpoints of a run are kept.
"""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster.conductor import STOP_POLL_S, Conductor
from orchestrator.storage import open_storage
from orchestrator.sweeps.measuring import Looks
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.searchers import num_configurations
from orchestrator.sweeps.section import SweepSection, Value
from orchestrator.sweeps.store import SweepRecord, SweepStore
from orchestrator.sweeps.study import Study
from orchestrator.training.state import TrainState

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
    total = num_configurations(given) * given.repeats
    return Sweep("s", "j", given, TOTAL, tried or [], num_trials=total)


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
    "fifo with repeats": {"scheduler": "fifo", "trials": 2, "repeats": 2},
    "asha": {"scheduler": "asha", "trials": 7, "reduction_factor": 2},
    "median": {"scheduler": "median", "trials": 7},
    "hyperband": {"scheduler": "hyperband", "trials": 7},
    "pbt": {"scheduler": "pbt", "trials": 4, "grace_images": 200, "quantile": 0.5},
    "pbt with many rounds": {"scheduler": "pbt", "trials": 3, "grace_images": 100},
    "tpe": {"scheduler": "asha", "trials": 6, "searcher": "tpe"},
    "grid": {"searcher": "grid", "space": {**SPACE, "gamma": {"grid": [0.1, 0.9, 0.4]}}},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_sweep_killed_at_any_write_ends_as_an_uninterrupted_one(name: str) -> None:
    """Every record and every checkpoint in turn is the last thing that a driver writes."""
    section = SECTIONS[name]
    whole = Disk()
    Pool(whole, section).run()
    check_history(whole)
    expected = outcome(whole, orders="pbt" not in name)
    for fuse in range(1, whole.writes + 1):
        disk = Disk(fuse=fuse)
        with pytest.raises(Killed):
            Pool(disk, section).run()
        disk.fuse = None
        Pool(disk, section).run()
        check_history(disk)
        assert outcome(disk, orders="pbt" not in name) == expected, f"killed after write {fuse}"


def test_the_made_up_searches_are_worth_their_name() -> None:
    """Trainings are stopped, halved and copied in them, or the test above says nothing."""
    ends = {}
    for name, section in SECTIONS.items():
        disk = Disk()
        Pool(disk, section).run()
        ends[name] = Counter[str](trial.status for trial in disk.trials())
        ends[name]["copies"] = sum(len(trial.legs) - 1 for trial in disk.trials())
    assert ends["fifo"] == {"finished": 3, "copies": 0}
    assert ends["fifo with repeats"] == {"finished": 4, "copies": 0}
    assert ends["grid"] == {"finished": 3, "copies": 0}
    for name in ("asha", "median", "hyperband", "tpe"):
        assert ends[name]["stopped"] >= 2
        assert ends[name]["finished"] >= 1
    assert ends["pbt"] == {"finished": 4, "copies": 8}
    assert ends["pbt with many rounds"] == {"finished": 3, "copies": 8}


@pytest.mark.parametrize("name", ["asha", "hyperband", "pbt", "pbt with many rounds"])
def test_a_sweep_killed_again_and_again_ends_as_an_uninterrupted_one(name: str) -> None:
    whole = Disk()
    Pool(whole, SECTIONS[name]).run()
    for seed in range(25):
        rng, disk = random.Random(seed), Disk()
        for _ in range(1000):
            disk.fuse = disk.writes + rng.randint(1, 12)
            try:
                Pool(disk, SECTIONS[name]).run()
            except Killed:
                continue
            break
        check_history(disk)
        assert outcome(disk) == outcome(whole)


@pytest.mark.parametrize("name", ["hyperband", "pbt", "pbt with many rounds"])
def test_where_all_wait_for_each_other_the_order_of_processes_does_not_count(name: str) -> None:
    whole = Disk()
    Pool(whole, SECTIONS[name]).run()
    for seed in range(25):
        rng, disk = random.Random(seed), Disk()
        disk.fuse = rng.randint(1, whole.writes) if seed % 2 else None
        pools = [Pool(disk, SECTIONS[name], rng.randint(1, 6), rng) for _ in range(1)]
        try:
            pools[0].run()
        except Killed:
            disk.fuse = None
            Pool(disk, SECTIONS[name], rng.randint(1, 6), rng).run()
        check_history(disk)
        assert [row[3:] for row in outcome(disk)] == [row[3:] for row in outcome(whole)]


@pytest.mark.parametrize("name", SECTIONS)
def test_of_many_processes_at_a_time_none_is_lost_and_none_runs_twice(name: str) -> None:
    """Also where drivers are killed and trainings diverge; every training ends once."""
    for seed in range(12):
        rng, disk = random.Random(f"{name}/{seed}"), Disk()
        bad = {(rng.randrange(7), STEP * rng.randint(1, 18)) for _ in range(seed % 3)}

        def broken(number: int, images: int, bad: set[tuple[int, int]] = bad) -> bool:
            return (number, images) in bad

        for _ in range(1000):
            disk.fuse = disk.writes + rng.randint(5, 80)
            pool = Pool(disk, SECTIONS[name], rng.randint(2, 5), rng, broken)
            try:
                pool.run()
            except Killed:
                continue
            break
        check_history(disk)
        assert sorted(disk.records) == list(range(sweep_of(**SECTIONS[name]).num_trials))
        assert all(
            t.looks[-1].images_seen == TOTAL for t in disk.trials() if t.status == "finished"
        )
        assert {t.number for t in disk.trials() if t.status == "diverged"} <= {n for n, _ in bad}
        orders = [look.order for trial in disk.trials() for look in trial.looks]
        assert sorted(orders) == list(range(len(orders)))


# one decision at a time


def study_of(disk: Disk, **section: Any) -> Study:
    clock = itertools.count(step=2.0)
    return Study(sweep_of(disk.trials(), **section), disk.save, disk.newest, lambda: next(clock))


def number_of(trial: Trial | None) -> int | None:
    return None if trial is None else trial.number


def test_trainings_are_begun_in_order_and_each_is_written_down_before_it_runs() -> None:
    disk = Disk()
    study = study_of(disk, trials=3)
    for number in range(3):
        trial = study.next()
        assert trial is not None
        assert (trial.number, trial.status) == (number, "running")
        assert json.loads(disk.records[number])["status"] == "running"
        assert trial.legs[0].run == f"sweeps/s/t{number:03d}"
    assert study.next() is None
    assert not study.stopping_or_done
    for number in range(3):
        assert not study.is_over
        study.ended(number, "finished")
    assert study.stopping_or_done
    assert study.is_over
    assert study.sweep.num_trials == 3
    assert [trial.seconds for trial in disk.trials()] == [6.0, 6.0, 6.0]


def test_repeats_share_their_values_and_differ_in_the_number_of_the_repeat() -> None:
    disk = Disk()
    Pool(disk, {"trials": 2, "repeats": 3}, size=4).run()
    trials = sorted(disk.trials(), key=lambda trial: trial.number)
    assert [(t.configuration, t.repeat) for t in trials] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert [t.values for t in trials] == [trials[0].values] * 3 + [trials[3].values] * 3
    assert trials[0].values != trials[3].values
    assert len({t.legs[0].run for t in trials}) == 6


def test_a_training_that_is_lost_goes_on_so_often_and_then_fails() -> None:
    disk = Disk()
    study = study_of(disk, trials=2)
    for failures in range(1, 4):
        assert number_of(study.next()) == 0
        study.lost(0, "its process was lost", max_failures=3)
        trial = disk.trials()[0]
        assert (trial.status, trial.why) == ("waiting", "its process was lost")
        assert trial.failures == failures
    assert number_of(study.next()) == 0
    study.lost(0, "its process was lost", max_failures=3)
    trial = disk.trials()[0]
    assert (trial.status, trial.failures) == ("failed", 4)
    assert trial.why == "its process was lost; cluster.max_failures is 3"
    assert number_of(study.next()) == 1


def test_failures_are_counted_over_drivers_but_a_lost_driver_is_none() -> None:
    disk = Disk()
    for failures in range(3):
        study = study_of(disk, trials=1)
        assert number_of(study.next()) == 0
        study.lost(0, "gone", max_failures=2)
        assert disk.trials()[0].failures == failures + 1
        study_of(disk, trials=1).next()  # and is killed
    assert disk.trials()[0].status == "failed"


def test_who_has_told_how_it_ended_is_not_lost() -> None:
    """Its process is gone afterwards, as every one is."""
    disk = Disk()
    study = study_of(disk, trials=1)
    study.next()
    study.ended(0, "finished")
    before = list(disk.history)
    study.lost(0, "its process was lost", max_failures=0)
    assert disk.history == before


def test_a_look_that_is_told_twice_counts_once() -> None:
    disk = Disk()
    study = study_of(disk, trials=1)
    study.next()
    assert study.look(0, 100, (1.0,)).action == "go on"
    assert study.look(0, 100, (7.0,)).action == "go on"
    assert study.look(0, 50, (7.0,)).action == "go on"
    assert [(look.images_seen, look.values) for look in disk.trials()[0].looks] == [(100, (1.0,))]


def stopped_by_asha(disk: Disk) -> Study:
    """Training 1 was told to stop, and has not done so."""
    study = study_of(disk, scheduler="asha", trials=2)
    study.next()
    study.next()
    study.look(0, 100, (1.0,))
    assert study.look(1, 100, (2.0,)).action == "stop"
    return study


def test_who_was_told_to_stop_and_is_lost_before_it_did_is_stopped_all_the_same() -> None:
    whys = []
    for how in ("lost", "lost once too often", "paused", "driver lost", "time over"):
        disk = Disk()
        study = stopped_by_asha(disk)
        match how:
            case "lost":
                study.lost(1, "gone", max_failures=3)
            case "lost once too often":
                study.lost(1, "gone", max_failures=0)
            case "paused":
                study.stop("someone stopped the sweep")
                assert study.wish_for(1, 100).action == "stop"  # type: ignore[union-attr]
                study.ended(1, "paused", "someone stopped the sweep")
            case "driver lost":
                study_of(disk, scheduler="asha", trials=2)
            case "time over":
                study.end_early("sweep.max_hours is 1")
                study.lost(1, "gone", max_failures=3)
        [trial] = [t for t in disk.trials() if t.number == 1]
        assert trial.status == "stopped", how
        whys.append(trial.why)
    assert set(whys) == {"2 after 100 images; one in 3 of 1 before it had 1 or better"}


def test_what_was_told_at_a_look_is_not_judged_again_by_what_is_known_later() -> None:
    """At its look training 0 was the first at its rung; others were better there since."""
    disk = Disk()
    study = study_of(disk, scheduler="median", trials=5, grace_images=100)
    for _ in range(5):
        study.next()
    assert study.look(0, 100, (9.0,)).action == "go on"
    for number in range(1, 5):
        study.look(number, 100, (1.0,))
    again = study_of(disk, scheduler="median", trials=5, grace_images=100)
    assert {t.number: t.status for t in again.trials} == dict.fromkeys(range(5), "waiting")


@pytest.mark.parametrize("scheduler", ["hyperband", "pbt"])
def test_who_was_told_to_wait_and_is_lost_saves_at_its_look_and_waits(scheduler: str) -> None:
    disk = Disk()
    section = {"scheduler": scheduler, "trials": 3, "grace_images": 100}
    study = study_of(disk, **section)
    trials = [study.next() for _ in range(3)]
    assert [number_of(trial) for trial in trials] == [0, 1, 2]
    for number in range(3):
        assert study.look(number, 100, (float(number),)).action == "pause"
    for number in (1, 2):
        disk.save_state(study.trials[number].legs[0].run, 100, 0.0)
        study.ended(number, "paused", "waits for others at 100 images")
    study.lost(0, "gone", max_failures=3)
    for again in (study, study_of(disk, **section)):
        [trial] = [t for t in again.trials if t.number == 0]
        assert (trial.status, trial.why) == ("waiting", "waits for others at 100 images")
    assert number_of(study.next()) == 0, "nobody goes on before it is there"
    assert study.wish_for(0, 50) is None
    said = study.wish_for(0, 100)
    assert said is not None
    assert (said.action, said.why) == ("pause", "waits for others at 100 images")
    disk.save_state(study.trials[0].legs[0].run, 100, 0.0)
    study.ended(0, said.action + "d", said.why)  # type: ignore[arg-type]
    assert number_of(study.next()) == (0 if scheduler == "hyperband" else 1)
    if scheduler == "hyperband":
        assert [trial.status for trial in study.trials] == ["running", "stopped", "stopped"]
        assert study.wish_for(0, 150) is None, "it was let go on"
    else:
        assert study.trials[2].legs[-1].parent == 0


def test_a_sweep_that_is_stopped_leaves_trainings_that_can_go_on() -> None:
    """At whatever moment someone stops it; who resumes it comes to the same end."""
    for name in ("fifo", "asha", "hyperband", "pbt"):
        whole = Disk()
        turns = [0]

        def count(pool: Pool, turn: int, turns: list[int] = turns) -> None:
            turns[0] = turn

        Pool(whole, SECTIONS[name], at_turn=count).run()
        for moment in range(0, turns[0], 7):
            disk = Disk()

            def stop(pool: Pool, turn: int, moment: int = moment) -> None:
                if turn == moment:
                    pool.study.stop("someone stopped the sweep")

            pool = Pool(disk, SECTIONS[name], 3, random.Random(moment), at_turn=stop).run()
            assert pool.study.next() is None
            assert "running" not in {trial.status for trial in disk.trials()}
            left = [trial for trial in disk.trials() if not trial.is_over]
            assert {trial.status for trial in left} <= {"waiting", "paused"}
            for trial in left:
                assert max(disk.checkpoints[trial.legs[-1].run], default=0) >= trial.images_seen
            Pool(disk, SECTIONS[name], 3, random.Random(moment)).run()
            check_history(disk)
            assert len(disk.records) == len(whole.records)


def test_a_stopped_sweep_tells_all_that_run_to_save_and_starts_nothing() -> None:
    disk = Disk()
    study = study_of(disk, trials=3)
    study.next()
    study.next()
    assert study.wish is None
    study.stop("someone stopped the sweep")
    assert study.next() is None
    assert study.stopping_or_done
    assert not study.is_over
    said = study.look(0, 100, (1.0,))
    assert said == study.wish == study.wish_for(1, 10)
    assert (said.action, said.why) == ("pause", "someone stopped the sweep")
    study.ended(0, "paused", said.why)
    study.ended(1, "paused", said.why)
    assert study.is_over
    assert [trial.status for trial in disk.trials()] == ["waiting", "waiting"]
    resumed = study_of(disk, trials=3)
    assert [number_of(resumed.next()) for _ in range(3)] == [0, 1, 2]


def test_a_sweep_whose_time_is_over_ends_all_for_good() -> None:
    disk = Disk()
    study = study_of(disk, scheduler="hyperband", trials=5)
    for _ in range(4):
        study.next()
    study.look(0, 100, (1.0,))
    study.ended(0, "paused", "waits for others at 100 images")
    study.look(1, 50, (1.0,))
    study.lost(2, "gone", max_failures=3)
    study.end_early("sweep.max_hours is 2")
    assert study.next() is None
    states = {trial.number: (trial.status, trial.why) for trial in disk.trials()}
    assert states[0] == ("stopped", "sweep.max_hours is 2")
    assert states[2] == ("failed", "sweep.max_hours is 2"), "it has shown nothing"
    said = study.look(1, 100, (1.0,))
    assert said == study.wish_for(3, 0)
    assert (said.action, said.why) == ("stop", "sweep.max_hours is 2")
    assert not study.is_over
    study.ended(1, "stopped", said.why)
    study.lost(3, "gone", max_failures=3)
    assert study.is_over
    states = {trial.number: (trial.status, trial.why) for trial in disk.trials()}
    assert states[1] == ("stopped", "sweep.max_hours is 2")
    assert states[3] == ("failed", "sweep.max_hours is 2"), "nobody would let it go on"


def test_who_comes_to_wait_when_the_time_is_over_is_ended() -> None:
    disk = Disk()
    study = study_of(disk, scheduler="hyperband", trials=2)
    study.next()
    assert study.look(0, 100, (1.0,)).action == "pause"
    study.end_early("sweep.max_hours is 2")
    study.ended(0, "paused", "waits for others at 100 images")
    assert (disk.trials()[0].status, disk.trials()[0].why) == ("stopped", "sweep.max_hours is 2")


@pytest.mark.parametrize("moment", range(0, 200, 9))
def test_a_sweep_that_ends_early_leaves_nothing_that_is_not_over(moment: int) -> None:
    for name in ("asha", "hyperband", "pbt"):
        disk = Disk()

        def end(pool: Pool, turn: int) -> None:
            if turn == moment:
                pool.study.end_early("sweep.max_hours is 2")

        Pool(disk, SECTIONS[name], 3, random.Random(moment), at_turn=end).run()
        check_history(disk)


def test_a_parent_goes_on_when_its_copies_have_started_and_not_before() -> None:
    """Going on it deletes old checkpoints, among them the one that they start from."""
    disk = Disk()
    section = {"scheduler": "pbt", "trials": 3, "grace_images": 100, "quantile": 0.3}
    study = study_of(disk, **section)
    for number in range(3):
        study.next()
        study.look(number, 100, (float(number),))
        disk.save_state(f"sweeps/s/t{number:03d}", 100, 0.0)
        study.ended(number, "paused", "waits")
    assert number_of(study.next()) == 1
    copy = study.next()
    assert copy is not None
    leg = copy.legs[-1]
    assert (copy.number, len(copy.legs)) == (2, 2)
    assert leg.run == "sweeps/s/t002-1"
    assert (leg.parent, leg.from_images) == (0, 100)
    assert leg.source == "sweeps/s/t000/checkpoints/100"
    assert leg.values != study.trials[0].values
    assert study.next() is None, "the parent waits"
    for again in (study, study_of(disk, **section)):  # also for a driver that finds it so
        if again is not study:
            assert [number_of(again.next()) for _ in range(3)] == [1, 2, None]
        again.started(2, "mlflow-id")
        assert number_of(again.next()) == 0


def test_a_parent_whose_copy_will_never_start_goes_on() -> None:
    disk = Disk()
    section = {"scheduler": "pbt", "trials": 2, "grace_images": 100}
    study = study_of(disk, **section)
    for number in range(2):
        study.next()
        study.look(number, 100, (float(number),))
        disk.save_state(f"sweeps/s/t{number:03d}", 100, 0.0)
        study.ended(number, "paused", "waits")
    assert [number_of(study.next()) for _ in range(2)] == [1, None]
    study.ended(1, "failed", "its values do not go together")
    assert number_of(study.next()) == 0


def test_each_copy_names_the_checkpoint_of_its_parent_at_that_round() -> None:
    disk = Disk()
    Pool(disk, SECTIONS["pbt with many rounds"], 3, random.Random(0)).run()
    trials = {trial.number: trial for trial in disk.trials()}
    legs = [leg for trial in trials.values() for leg in trial.legs if leg.parent is not None]
    assert len(legs) == 8
    assert sorted(leg.from_images for leg in legs) == list(range(100, 900, 100))
    for leg in legs:
        assert leg.parent is not None
        runs = [parent_leg.run for parent_leg in trials[leg.parent].legs]
        assert leg.source in {f"{run}/checkpoints/{leg.from_images}" for run in runs}
    for trial in trials.values():
        first = trial.legs[0].run
        expected = [first, *(f"{first}-{n}" for n in range(1, len(trial.legs)))]
        assert [leg.run for leg in trial.legs] == expected


# the conductor, in this process


def announced(folder: Path, **section: Any) -> SweepStore:
    given = sweep_of(**section).section.model_dump(mode="json", exclude_none=True)
    store = SweepStore(open_storage(str(folder)), "s")
    store.announce(
        SweepRecord("s", "j", "x", "", (), "", given, "d", TOTAL, EVERY, "uri", "1", "parent")
    )
    return store


def save_checkpoint(folder: Path, run: str, images: int) -> None:
    checkpoints = Checkpoints(open_storage(str(folder)), f"{run}/checkpoints", "job: x")
    weights = {"net.w": torch.full((2,), float(images))}
    checkpoints.save(TrainState(images, weights, weights, {}, {"net": {}}).on_host())


def test_a_conductor_names_the_parents_newest_whole_checkpoint_and_not_where_the_storage_is(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "place-from-the-environment"
    section = {"scheduler": "pbt", "trials": 2, "grace_images": 100}
    store = announced(folder, **section)
    conductor = Conductor(str(folder), "s", max_failures=3)
    for number in range(2):
        trial = conductor.next(f"a{number}")
        assert number_of(trial) == number
        conductor.started(number, f"mlflow-{number}")
        assert conductor.look(number, 100, (float(number),)).action == "pause"
        for images in (50, 100):
            save_checkpoint(folder, f"sweeps/s/t{number:03d}", images)
        conductor.ended(number, f"a{number}", "paused", "waits")
    copy = conductor.next("a2")
    assert copy is not None
    source = copy.legs[-1].source
    assert source is not None
    assert source.startswith("sweeps/s/t000/checkpoints/000000000100-")
    assert (folder / source / "manifest.json").exists()
    assert [trial.legs for trial in store.trials()] == [
        trial.legs for trial in conductor.progress(0).sweep.trials
    ]
    for path in (folder / "sweeps/s/trials").iterdir():
        assert "place-from" not in path.read_text()


def test_without_a_whole_checkpoint_to_copy_a_training_goes_on_as_it_is(tmp_path: Path) -> None:
    announced(tmp_path, scheduler="pbt", trials=2, grace_images=100)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    for number in range(2):
        conductor.next(f"a{number}")
        conductor.look(number, 100, (float(number),))
        conductor.ended(number, f"a{number}", "paused", "waits")
    found = [conductor.next("a2"), conductor.next("a3")]
    assert sorted(trial.number for trial in found if trial) == [0, 1]
    second = conductor.progress(0).sweep.trials[1]
    assert len(second.legs) == 1
    record = json.loads((tmp_path / "sweeps/s/trials/0001.json").read_text())
    assert record["legs"][0]["values"] == second.values


def test_a_conductor_hears_of_a_wish_to_stop_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("orchestrator.cluster.conductor.time.monotonic", lambda: now[0])
    store = announced(tmp_path, trials=3)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    conductor.next("a0")
    store.ask_to_stop()
    assert conductor.wish(0, 50) is None, "it does not look all the time"
    assert conductor.progress(0).images_seen == {0: 50}
    now[0] += STOP_POLL_S
    said = conductor.wish(0, 100)
    assert said is not None
    assert (said.action, said.why) == ("pause", "someone stopped the sweep")
    assert conductor.next("a1") is None
    assert conductor.is_over()
    conductor.ended(0, "a0", "paused", said.why)
    progress = conductor.progress(0)
    assert (progress.stopped, progress.images_seen) == (True, {})
    assert [trial.status for trial in store.trials()] == ["waiting"]


def test_a_conductor_keeps_notes_in_order_and_gives_each_once(tmp_path: Path) -> None:
    announced(tmp_path, trials=1)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    for text in ("a", "b", "c"):
        conductor.note(text)
    assert conductor.progress(0).notes == ["a", "b", "c"]
    assert conductor.progress(2).notes == ["c"]
    assert conductor.progress(3).notes == []


def test_the_late_word_of_an_ended_attempt_does_not_touch_the_one_that_runs_now(
    tmp_path: Path,
) -> None:
    announced(tmp_path, scheduler="pbt", trials=2, grace_images=100)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    for number in range(2):
        conductor.next(f"a{number}")
        conductor.look(number, 100, (float(number),))
        conductor.ended(number, f"a{number}", "paused", "waits")
    again = conductor.next("a2")
    assert again is not None
    late = f"a{again.number}"
    conductor.lost(again.number, late, "its process was lost")  # as Tune tells of each end
    conductor.ended(again.number, late, "finished", "")
    trial = conductor.progress(0).sweep.trials[again.number]
    assert (trial.status, trial.failures) == ("running", 0)
    conductor.lost(again.number, "a2", "its process was lost")
    conductor.lost(again.number, "a2", "its process was lost")
    trial = conductor.progress(0).sweep.trials[again.number]
    assert (trial.status, trial.failures) == ("waiting", 1)
