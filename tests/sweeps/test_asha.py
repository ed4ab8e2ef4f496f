"""asha, compared with an independent implementation of the paper's algorithm."""

import heapq
import math
import random

import pytest

from orchestrator.sweeps.early_stopping import decide_trial
from orchestrator.sweeps.promotion import decide_promotions
from support.pools import Disk, make_study
from support.sweep_driver import Driver, actions, make_sweep, make_trial, table

Job = tuple[int, int]
"""Number of a trial and the rung that it trains up to."""


class Paper:
    """Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2.

    A rung is a set of (loss, number). Unless ``eager``, new configurations come first.
    """

    def __init__(self, configurations: int, rungs: int, eta: int, *, eager: bool) -> None:
        self.left, self.eta, self.eager = iter(range(configurations)), eta, eager
        self.rungs: list[set[tuple[float, int]]] = [set() for _ in range(rungs + 1)]
        self.promoted: list[set[int]] = [set() for _ in range(rungs + 1)]

    def next(self) -> Job | None:
        if self.eager and (promoted := self._promoted()) is not None:
            return promoted
        number = next(self.left, None)
        return self._promoted() if number is None else (number, 0)

    def _promoted(self) -> Job | None:
        for rung in reversed(range(len(self.rungs) - 1)):
            best = sorted(self.rungs[rung])[: len(self.rungs[rung]) // self.eta]
            for _, number in best:
                if number not in self.promoted[rung]:
                    self.promoted[rung].add(number)
                    return number, rung + 1
        return None

    def arrived(self, job: Job, loss: float) -> None:
        self.rungs[job[1]].add((loss, job[0]))


class Ours:
    """The same jobs, selected by a study."""

    def __init__(self, configurations: int, rungs: list[int], eta: int, *, eager: bool) -> None:
        self.rungs = rungs
        self.study = make_study(
            Disk(), scheduler="asha", trials=configurations, reduction_factor=eta,
            grace_images=rungs[0], max_hours=1000 if eager else None,
        )  # fmt: skip

    def next(self) -> Job | None:
        trial = self.study.next_trial()
        if trial is None:
            return None
        return trial.number, sum(images <= trial.images_seen for images in self.rungs)

    def arrived(self, job: Job, loss: float) -> None:
        number, rung = job
        decision = self.study.report_result(number, [*self.rungs, 900][rung], (loss,))
        if rung == len(self.rungs):
            assert decision.action == "continue"
            self.study.record_end(number, "finished")
        else:
            assert decision.action == "pause"
            self.study.record_end(number, "paused", decision.reason)


def run_jobs(jobs: Paper | Ours, seed: int, size: int) -> list[Job]:
    """Run the jobs on ``size`` workers; return them in the order of their start."""
    started: list[Job] = []
    running: list[tuple[float, Job]] = []
    now = 0.0
    while True:
        while len(running) < size and (job := jobs.next()) is not None:
            started.append(job)
            pace = random.Random(f"{seed}/{job}").uniform(0.5, 2)
            heapq.heappush(running, (now + pace * 3 ** job[1], job))
        if not running:
            return started
        now, job = heapq.heappop(running)
        jobs.arrived(job, random.Random(f"{seed}/loss/{job}").random())


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_trials_start_and_are_promoted_in_the_order_of_the_papers_algorithm(
    size: int, eager: bool
) -> None:
    for seed in range(20):
        paper = run_jobs(Paper(27, 2, 3, eager=eager), seed, size)
        ours = Ours(27, [100, 300], 3, eager=eager)
        assert run_jobs(ours, seed, size) == paper
        complete = {number for number, rung in paper if rung == 2}
        assert {t.number for t in ours.study.trials if t.status == "finished"} == complete
        assert len(complete) >= 3
        assert ours.study.is_over


def test_new_trials_start_before_promotions_unless_the_time_is_limited() -> None:
    for eager, decided in ((False, {}), (True, {0: "continue"})):
        trials = [make_trial(n, (100, float(n)), status="paused") for n in range(3)]
        sweep = make_sweep(trials, scheduler="asha", num_trials=9, max_hours=1.0 if eager else None)
        assert actions(decide_promotions(sweep)) == decided


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_all_trials_end_and_enough_are_promoted_in_any_order(count: int, eager: bool) -> None:
    """At each rung at least a third of the trials is promoted, the best one among them."""
    for seed in range(40):
        sweep = make_sweep(scheduler="asha", max_hours=1.0 if eager else None)
        driver = Driver(sweep, count, table(seed, bad=0.0), random.Random(seed), (50, 20, 100))
        driver.run()
        here = list(driver.trials)
        for images in (100, 300):
            seen = {t.number: next(k for k in t.results if k.images_seen >= images) for t in here}
            went = [t for t in here if t.images_seen > seen[t.number].images_seen]
            assert len(went) >= max(1, len(here) // 3)
            best = min(here, key=lambda t: seen[t.number].values[0])
            assert best in went
            here = went
        assert {trial.status for trial in here} == {"finished"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_nonfinite_metric_ranks_last(bad: float, mode: str) -> None:
    values = [bad, 1.0, bad]
    trials = [make_trial(n, (100, value), status="paused") for n, value in enumerate(values)]
    decided = decide_promotions(make_sweep(trials, scheduler="asha", mode=mode))
    assert actions(decided) == {0: "stop", 1: "continue", 2: "stop"}
    assert decided[1].reason == "1st of 3 after 100 images"
    assert decided[2].reason == "3rd of 3 after 100 images; 1 promoted"


def test_no_trial_stops_while_another_may_still_reach_the_rung() -> None:
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(5)]
    late = make_trial(5)
    sweep = make_sweep([*trials, late], scheduler="asha")
    assert actions(decide_promotions(sweep)) == {0: "continue"}
    late.status = "diverged"
    assert actions(decide_promotions(sweep)) == {
        0: "continue",
        1: "stop",
        2: "stop",
        3: "stop",
        4: "stop",
    }


def test_trials_are_promoted_one_at_a_time() -> None:
    """The next one is selected when a worker is free, from the results by then."""
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(6)]
    sweep = make_sweep([*trials, make_trial(6)], scheduler="asha")
    assert actions(decide_promotions(sweep)) == {0: "continue"}
    trials[0].status = "waiting"
    assert decide_promotions(sweep) == []
    trials[0].status = "running"
    assert actions(decide_promotions(sweep)) == {1: "continue"}


def test_a_trial_that_failed_at_a_rung_takes_no_place_among_the_promoted() -> None:
    diverged = make_trial(0, (100, 0.0), status="diverged")
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(1, 4)]
    assert actions(decide_promotions(make_sweep([diverged, *trials], scheduler="asha"))) == {
        1: "continue", 2: "stop", 3: "stop",
    }  # fmt: skip


def test_a_trial_pauses_once_at_each_rung() -> None:
    decided = {}
    for images in range(50, 950, 50):
        trial = make_trial(0, *((seen, 0.5) for seen in range(50, images + 50, 50)))
        decided[images] = decide_trial(make_sweep(scheduler="asha"), trial).action
    assert [images for images, action in decided.items() if action == "pause"] == [100, 300]
