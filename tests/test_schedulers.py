"""Who is stopped, who waits and who is copied: against other writings of the same rules."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import async_hyperband

from orchestrator.sweeps.records import Leg, Look, Sweep, Trial
from orchestrator.sweeps.rounds import bracket_sizes
from orchestrator.sweeps.schedulers import Settlement, judge, settle
from orchestrator.sweeps.section import SweepSection, Value
from orchestrator.sweeps.space import clip, draw

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
        assert settle(self.records()) == [s for s in settlements if s not in chosen]


def table(key: object, bad: float = 0.1) -> Callable[[Trial, int], float]:
    """Values that depend on the training and its images alone; some are not finite."""

    def value_of(trial: Trial, images: int) -> float:
        rng = random.Random(f"{key}/{trial.number}/{images}")
        return rng.choice([math.nan, math.inf, -math.inf]) if rng.random() < bad else rng.random()

    return value_of


# fifo


def test_with_fifo_nobody_is_stopped_however_bad() -> None:
    trials = [trial_of(n, (100, 0.0), (800, 0.0)) for n in range(5)]
    bad = trial_of(9, (800, math.nan), at=99)
    sweep = sweep_of([*trials, bad], scheduler="fifo")
    assert judge(sweep, bad).action == "go on"
    bad.status = "paused"
    assert settle(sweep) == []


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband", "pbt"])
def test_the_last_look_of_a_training_ends_nothing(scheduler: str) -> None:
    trials = [trial_of(n, (100, 0.0), (300, 0.0), (900, 0.0)) for n in range(5)]
    last = trial_of(9, (900, 9.0), at=99)
    sweep = sweep_of([*trials, last], scheduler=scheduler)
    assert judge(sweep, last).action == "go on"
    if scheduler != "asha":
        last.looks = [Look(899, (9.0,), 99)]
        assert judge(sweep, last).action != "go on"


# asha


def mixed_looks(seed: int) -> Counter[str]:
    """Looks of many trainings, mixed, judged by us and by Tune; how often each answer was given."""
    rng = random.Random(seed)
    grace, factor = rng.choice([1, 7, 10, 50]), rng.choice([2, 3, 4])
    total, mode = rng.choice([grace * factor**3, 400, 1000]), rng.choice(["min", "max"])
    bracket: Any = async_hyperband._Bracket(grace, total, factor, 0)
    value: Callable[[], float] = rng.choice([rng.random, lambda: float(rng.randint(-2, 2))])
    trials = [trial_of(n) for n in range(rng.randint(2, 15))]
    sweep = sweep_of(
        trials, total, scheduler="asha", grace_images=grace, reduction_factor=factor, mode=mode
    )
    running, answers, order = list(trials), Counter[str](), 0
    while running:
        trial = rng.choice(running)
        images = trial.images_seen + rng.choice([1, 5, 20, 100, 300])
        trial.looks.append(Look(images, (value(),), order := order + 1))
        verdict = judge(sweep, trial)
        if images >= total:  # Tune's scheduler ends it there without asking the bracket.
            assert verdict.action == "go on"
        else:
            signed = trial.last() if mode == "max" else -trial.last()
            tune = bracket.on_result(SimpleNamespace(trial_id=trial.number), images, signed)
            assert verdict.action == {"CONTINUE": "go on", "STOP": "stop"}[tune]
            answers[tune] += 1
        if images >= total or verdict.action == "stop":
            running.remove(trial)
    return answers


def test_asha_decides_as_ray_tunes_bracket_does() -> None:
    answers = sum((mixed_looks(seed) for seed in range(400)), Counter())
    assert min(answers["CONTINUE"], answers["STOP"]) > 1000


def test_asha_says_what_would_have_been_good_enough() -> None:
    trials = [trial_of(n, (100, 0.1 * n), at=n) for n in range(1, 5)]
    late = trial_of(9, (110, 0.25), at=9)
    verdict = judge(sweep_of([*trials, late], scheduler="asha"), late)
    assert verdict.action == "stop"
    assert verdict.why == "0.25 after 100 images; one in 3 of 4 before it had 0.2 or better"


def test_asha_compares_only_with_those_that_were_at_the_rung_before() -> None:
    first, second = trial_of(0, (100, 5.0), at=3), trial_of(1, (100, 1.0), at=4)
    sweep = sweep_of([first, second], scheduler="asha")
    assert [judge(sweep, t).action for t in (first, second)] == ["go on", "go on"]
    second.looks = [Look(100, (1.0,), 2)]
    assert [judge(sweep, t).action for t in (first, second)] == ["stop", "go on"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_asha_takes_what_is_not_finite_for_the_worst(bad: float, mode: str) -> None:
    good = trial_of(0, (100, 1.0), at=0)
    broken, fine = trial_of(1, (100, bad), at=1), trial_of(2, (100, 1.0), at=2)
    sweep = sweep_of([good, broken, fine], scheduler="asha", mode=mode)
    assert [judge(sweep, t).action for t in sweep.trials] == ["go on", "stop", "go on"]
    alike = [trial_of(n, (100, bad), at=n) for n in range(3)]
    assert judge(replace(sweep, trials=alike), alike[-1]).action == "go on"


# median


def slow_median(sweep: Sweep, trial: Trial, grace: int) -> str:
    """Another writing of the rule, on fractions."""
    sign, seen = (1 if sweep.section.mode == "max" else -1), trial.looks[-1].images_seen

    def good(look: Look) -> Fraction | float:
        value = look.values[0]
        return sign * Fraction(value) if math.isfinite(value) else -math.inf

    means = []
    for other in sweep.trials:
        if other is trial or not any(look.images_seen >= seen for look in other.looks):
            continue
        till = [good(look) for look in other.looks if look.images_seen <= seen]
        if till:
            means.append(sum(till) / len(till))
    means.sort()
    if seen < grace or seen >= sweep.total_images or len(means) < 3:
        return "go on"
    middle = (means[len(means) // 2] + means[(len(means) - 1) // 2]) / 2
    return "stop" if max(good(look) for look in trial.looks) < middle else "go on"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_median_decides_as_a_slow_writing_of_the_rule(mode: str) -> None:
    seen: dict[str, int] = {"go on": 0, "stop": 0}
    for seed in range(400):
        rng = random.Random(f"{mode}/{seed}")
        trials = []
        for number in range(rng.randint(2, 12)):
            images, level = sorted(rng.sample(range(50, 1000, 25), 8)), rng.gauss(0, 2)
            values = [math.nan if rng.random() < 0.03 else level + rng.gauss(0, 1) for _ in images]
            trials.append(trial_of(number, *zip(images, values, strict=True)))
        grace = rng.choice([None, 300])
        for number in range(len(trials)):
            trial = replace(trials[number], looks=trials[number].looks[: rng.randint(1, 8)])
            others = [*trials[:number], *trials[number + 1 :]]
            sweep = sweep_of([*others, trial], scheduler="median", mode=mode, grace_images=grace)
            expected = slow_median(sweep, trial, grace or 100)
            assert judge(sweep, trial).action == expected
            seen[expected] += 1
    assert min(seen.values()) > 300


def test_median_needs_three_others_and_goes_by_the_best_value_so_far() -> None:
    others = [trial_of(n, (100, 0.5), (200, 0.3)) for n in range(3)]
    bad, once_good = trial_of(7, (200, 0.5)), trial_of(8, (100, 0.2), (200, 0.5))
    same, early = trial_of(9, (200, 0.4)), trial_of(10, (99, 7.0))
    sweep = sweep_of([*others, bad], scheduler="median")
    assert judge(sweep, bad).action == "stop"
    assert judge(sweep, bad).why == (
        "0.5 at best in 200 images; the median of the means of 3 others is 0.4"
    )
    for trial in (once_good, same, early):
        assert judge(sweep_of([*others, trial], scheduler="median"), trial).action == "go on"
    assert judge(sweep_of([*others[:2], bad], scheduler="median"), bad).action == "go on"


def test_median_stops_nobody_for_a_rounded_mean() -> None:
    """The sum of three times 0.1, divided by 3, is more than 0.1."""
    trials = [trial_of(n, *((images, 0.1) for images in (100, 200, 300))) for n in range(4)]
    assert judge(sweep_of(trials, scheduler="median", mode="max"), trials[0]).action == "go on"


# hyperband


def test_hyperbands_brackets_are_those_of_the_papers_table() -> None:
    """Li et al. 2018 (JMLR), eta 3 and R 81: 81, 34, 15, 8 and 5 trainings start."""
    sweep = sweep_of(total=81, scheduler="hyperband", grace_images=1)
    assert bracket_sizes(sweep) == {4: 81, 3: 34, 2: 15, 1: 8, 0: 5}


@pytest.mark.parametrize(
    ("total", "grace", "factor", "most"),
    [(243, 1, 3, 5), (242, 1, 3, 4), (1000, 1, 10, 3), (8, 8, 2, 0), (8, 9, 2, 0)],
)
def test_there_are_as_many_brackets_as_whole_powers_of_the_factor(
    total: int, grace: int | None, factor: int, most: int
) -> None:
    """Also where a logarithm is rounded below the whole number, as that of 243 to the base 3."""
    sweep = sweep_of(
        total=total, scheduler="hyperband", grace_images=grace, reduction_factor=factor
    )
    assert max(bracket_sizes(sweep)) == most


def halved(sizes: dict[int, int], total: int, driver: Driver) -> dict[int, int]:
    """The images that each training sees in the end: bracket for bracket, rung for rung."""
    value_of, sign = driver.value_of, 1 if driver.sweep.section.mode == "min" else -1
    factor, numbers = driver.sweep.section.reduction_factor, iter(range(10**6))
    ends: dict[int, int] = {}

    def look_at(number: int, images: float) -> int:
        stride = driver.strides[number % len(driver.strides)]
        return math.ceil(Fraction(images) / stride) * stride

    def rank(number: int, images: Fraction) -> tuple[float, int]:
        value = value_of(trial_of(number), look_at(number, images))  # type: ignore[arg-type]
        return (sign * value if math.isfinite(value) else math.inf), number

    while len(ends) < driver.num_trials:
        for s, size in sizes.items():
            race = [n for n in (next(numbers) for _ in range(size)) if n < driver.num_trials]
            for i in range(s):
                images = Fraction(total, factor ** (s - i))
                race.sort(key=lambda n, images=images: rank(n, images))  # type: ignore[misc]
                keep = max(1, len(race) // factor)
                ends |= {n: look_at(n, images) for n in race[keep:]}  # type: ignore[arg-type]
                race = race[:keep]
            ends |= {n: look_at(n, total) for n in race}
    return ends


@pytest.mark.parametrize("seed", range(30))
def test_hyperband_ends_each_training_where_plain_successive_halving_does(seed: int) -> None:
    """In whatever order they come, with looks that jump over rungs and drivers that are lost."""
    rng = random.Random(seed)
    factor, mode = rng.choice([2, 3]), rng.choice(["min", "max"])
    strides = rng.choice([(10,), (7, 30, 100), (90, 500)])
    sweep = sweep_of(total=900, scheduler="hyperband", reduction_factor=factor, mode=mode)
    driver = Driver(sweep, rng.choice([1, 5, 22, 40]), table(seed), rng, strides)
    driver.run()
    expected = halved(bracket_sizes(sweep), 900, driver)
    assert {t.number: t.images_seen for t in driver.trials} == expected


def test_of_nine_at_a_rung_the_best_three_go_on_and_the_others_are_told_why() -> None:
    trials = [trial_of(n, (100, float(-n)), status="paused") for n in range(9)]
    said = settle(sweep_of(trials, scheduler="hyperband"))
    assert actions(said) == dict.fromkeys(range(6), "stop") | dict.fromkeys((6, 7, 8), "go on")
    assert said[4].why == "5th of 9 after 100 images; 3 go on"
    assert [s.why.split()[0] for s in said[6:]] == ["3rd", "2nd", "1st"]


def test_a_rung_waits_for_all_that_are_not_over_and_for_those_that_will_be_added() -> None:
    trials = [trial_of(n, (100, float(n)), status="paused") for n in range(6)]
    late = trial_of(6, (90, 0.0))
    sweep = sweep_of([*trials, late], scheduler="hyperband")
    assert settle(sweep) == []
    late.status = "failed"
    assert actions(settle(sweep)) == {0: "go on", 1: "go on"} | dict.fromkeys(range(2, 6), "stop")
    assert settle(replace(sweep, num_trials=8)) == []


def test_a_full_bracket_does_not_wait_for_trainings_of_the_next_one() -> None:
    trials = [trial_of(n, (100, float(n)), status="paused") for n in range(9)]
    sweep = sweep_of(trials, scheduler="hyperband", num_trials=30)
    assert len(settle(sweep)) == 9
    assert settle(replace(sweep, trials=trials[1:])) == []
    next_one = trial_of(9, (290, 0.0))
    assert len(settle(replace(sweep, trials=[*trials, next_one]))) == 9


def test_a_training_waits_once_at_each_rung_of_its_bracket() -> None:
    def pauses(number: int) -> list[int]:
        trial, found = trial_of(number), []
        for order, images in enumerate(range(20, 900, 20)):
            trial.looks.append(Look(images, (1.0,), order))
            verdict = judge(sweep_of([trial], scheduler="hyperband"), trial)
            found += [images] if verdict.action == "pause" else []
        return found

    # Nine are in bracket 2, five in bracket 1, three in bracket 0.
    assert [pauses(n) for n in (0, 8, 9, 13, 14, 16, 17)] == [
        [100, 300], [100, 300], [300], [300], [], [], [100, 300],
    ]  # fmt: skip


def test_who_was_lost_at_a_rung_takes_nobodys_place() -> None:
    trials = [trial_of(n, (100, float(n)), status="paused") for n in range(4)]
    trials[0].status = "diverged"
    said = settle(sweep_of(trials, scheduler="hyperband"))
    assert actions(said) == {1: "go on", 2: "stop", 3: "stop"}
    assert said[0].why == "1st of 3 after 100 images; 1 goes on"


def test_who_went_on_from_a_rung_and_failed_later_is_not_replaced() -> None:
    """The driver was lost before it could tell the others."""
    trials = [trial_of(n, (100, float(n)), status="paused") for n in range(9)]
    trials[:2] = [trial_of(n, (100, float(n)), (120, 0.0), status="failed") for n in range(2)]
    said = settle(sweep_of(trials, scheduler="hyperband"))
    assert actions(said) == {2: "go on"} | dict.fromkeys(range(3, 9), "stop")


# pbt


def by_values(trial: Trial, images: int) -> float:
    """A training is as good as its values, which it may have from another one."""
    rng = random.Random(f"{sorted(trial.values.items())}/{images}")
    return math.nan if rng.random() < 0.1 else rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_pbt_makes_the_same_copies_in_whatever_order_the_trainings_run(seed: int) -> None:
    rng = random.Random(seed)
    count, quantile = rng.choice([1, 2, 5, 12]), rng.choice([0.2, 0.25, 0.5])
    sweep = sweep_of(total=900, scheduler="pbt", quantile=quantile, seed=seed)
    drivers = []
    for order in range(2):
        shuffled = random.Random(f"{seed}/{order}")
        drivers.append(Driver(sweep, count, by_values, shuffled, (60,), is_patient=True))
        drivers[-1].run()
    said = [sorted(d.said, key=lambda s: (s.why.split(";")[0], s.number)) for d in drivers]
    assert said[0] == said[1]
    copies = max(1, math.floor(quantile * count)) if count > 1 else 0
    assert sum(s.action == "copy" for s in said[0]) == 4 * copies
    assert all(t.status == "finished" and t.images_seen == 900 for t in drivers[0].trials)


@pytest.mark.parametrize("seed", range(20))
def test_pbt_ends_though_drivers_are_lost_and_looks_jump_over_rounds(seed: int) -> None:
    rng = random.Random(seed)
    strides = rng.choice([(30,), (17, 60, 400), (250, 300)])
    sweep = sweep_of(total=900, scheduler="pbt", grace_images=200)
    driver = Driver(sweep, rng.choice([2, 7]), table(seed), rng, strides)
    driver.run()
    assert all(trial.status == "finished" for trial in driver.trials)
    assert any(s.action == "copy" for s in driver.said) or len(strides) > 1


def population(count: int, images: int = 180, **section: Any) -> Sweep:
    """Of which the higher number is the worse."""
    trials = [trial_of(n, (images, float(n)), status="paused", at=n) for n in range(count)]
    return sweep_of(trials, scheduler="pbt", **section)


@pytest.mark.parametrize(
    ("count", "quantile", "copies"),
    [(8, 0.25, 2), (9, 0.25, 2), (2, 0.1, 1), (1, 0.5, 0), (3, 0.5, 1), (100, 0.29, 29)],
)
def test_pbt_copies_as_many_of_the_best_onto_the_worst(
    count: int, quantile: float, copies: int
) -> None:
    """0.29 * 100 is rounded to a little less than 29."""
    said = settle(population(count, quantile=quantile))
    assert [s.action for s in said] == ["go on"] * (count - copies) + ["copy"] * copies
    assert {s.parent for s in said if s.action == "copy"} <= set(range(copies))


def test_pbt_copies_come_from_all_of_the_best() -> None:
    parents = {s.parent for seed in range(20) for s in settle(population(8, seed=seed))}
    assert parents == {None, 0, 1}


def test_each_copy_and_each_round_is_drawn_for_itself() -> None:
    first, second = (settle(population(40, images, quantile=0.5))[20:] for images in (180, 360))
    assert len({s.parent for s in first}) > 8
    assert [s.parent for s in first] != [s.parent for s in second]


def test_pbt_names_the_parent_and_keeps_what_is_not_searched() -> None:
    last = settle(population(8))[-1]
    assert last.why == f"8th of 8 after 180 images; goes on as a copy of {last.parent}"
    assert last.values is not None
    assert last.values["model.other"] == last.parent


def test_pbt_takes_what_is_not_finite_for_the_worst() -> None:
    sweep = population(4, quantile=0.25, mode="max")
    sweep.trials[3].looks[:] = [Look(180, (math.inf, 0.0), 3)]
    assert actions(settle(sweep)) == {0: "go on", 1: "go on", 2: "go on", 3: "copy"}


def test_a_round_waits_for_the_whole_population_and_for_those_that_still_save() -> None:
    sweep = population(4)
    assert settle(replace(sweep, num_trials=5)) == []
    sweep.trials[1].status = "running"
    assert settle(sweep) == []
    sweep.trials[1].status = "diverged"
    assert actions(settle(sweep)) == {0: "go on", 2: "go on", 3: "copy"}
    assert settle(sweep)[-1].why.startswith("3rd of 3")
    sweep.trials[1].status = "running"
    sweep.trials[1].looks[:] = [Look(170, (0.0,), 1)]
    assert settle(sweep) == []


def test_who_was_told_is_not_told_again() -> None:
    sweep = population(4)
    before = settle(sweep)
    for number in (0, 3):
        sweep.trials[number].status = "waiting"
    assert settle(sweep) == [s for s in before if s.number in (1, 2)]


def test_a_training_waits_once_in_each_round() -> None:
    trial, found = trial_of(0), []
    for order, images in enumerate([100, 200, 300, 400, 850, 860, 900]):
        trial.looks.append(Look(images, (1.0,), order))
        verdict = judge(sweep_of([trial], scheduler="pbt"), trial)
        found += [(images, verdict.why)] if verdict.action == "pause" else []
    assert found == [
        (200, "waits for others at 180 images"),
        (400, "waits for others at 360 images"),
        (850, "waits for others at 720 images"),
    ]


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_copys_values_are_such_as_could_have_been_drawn(seed: int) -> None:
    """Also where the parent's are at an end of the range."""
    rng, sweep = random.Random(seed), population(6, quantile=0.5, seed=seed)
    space = sweep.section.space
    for trial in sweep.trials:
        values = {name: draw(distribution, rng) for name, distribution in space.items()}
        for name in ("model.learning_rate", "model.gamma", "model.channels", "model.depth"):
            if rng.random() < 0.5:
                values[name] = clip(space[name], rng.choice([-1e9, 1e9]))
        trial.legs = [replace(trial.legs[0], values=values)]
    for settlement in settle(sweep)[3:]:
        assert settlement.values is not None
        for name, distribution in space.items():
            value = settlement.values[name]
            assert clip(distribution, value) == value
            assert type(clip(distribution, value)) is type(value)


def test_a_copys_values_are_near_its_parents_or_drawn_anew() -> None:
    """Over many seeds: three in four numbers are 0.8 or 1.2 of the parent's, as often each."""
    rates: dict[str, int] = {"0.8": 0, "1.2": 0, "anew": 0}
    norms: dict[Value, int] = {"batch": 0, "group": 0, None: 0}
    for seed in range(2000):
        copy = settle(population(2, seed=seed))[-1]
        assert copy.values is not None
        factor = copy.values["model.gamma"] / 0.5  # type: ignore[operator]
        close = {"0.8": 0.8, "1.2": 1.2}
        near = [name for name, f in close.items() if math.isclose(factor, f)]
        rates[near[0] if near else "anew"] += 1
        norms[copy.values["model.norm"]] += 1
    assert rates["0.8"] == pytest.approx(750, abs=75)
    assert rates["1.2"] == pytest.approx(750, abs=75)
    assert rates["anew"] == pytest.approx(500, abs=75)
    assert norms["batch"] == pytest.approx(1500 + 500 / 3, abs=75)
    assert norms["group"] == pytest.approx(norms[None], abs=75)


# the records alone


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), scheduler=st.sampled_from(["asha", "hyperband", "median", "pbt"])
)
def test_the_same_records_give_the_same_answer_whatever_their_order(
    seed: int, scheduler: str
) -> None:
    rng = random.Random(seed)
    trials, order = [], 0
    for number in range(rng.randint(1, 12)):
        trial = trial_of(number, status=rng.choice(["running", "paused", "paused", "stopped"]))
        for images in sorted(rng.sample(range(20, 900, 20), rng.randint(0, 8))):
            order += 1
            trial.looks.append(Look(images, (rng.choice([1.0, 2.0, math.nan]),), order))
        trials.append(trial)
    sweep = sweep_of(trials, scheduler=scheduler)
    other = replace(sweep, trials=rng.sample(trials, len(trials)))
    read = [Trial.from_json(trial.to_json()) for trial in other.trials]
    again = replace(other, trials=read)
    said = settle(sweep)
    assert said == settle(other) == settle(again)
    assert all(a.number < b.number for a, b in pairwise(said))
    assert {s.number for s in said} <= {t.number for t in trials if t.status == "paused"}
    by_number = {t.number: t for t in read}
    for trial in trials:
        assert judge(sweep, trial) == judge(again, by_number[trial.number])


@settings(deadline=None)
@given(
    count=st.integers(1, 25), factor=st.integers(2, 5), values=st.lists(st.floats(), min_size=25)
)
def test_no_more_go_on_from_a_rung_than_their_share(
    count: int, factor: int, values: list[float]
) -> None:
    """All of them are in the first bracket, and wait at its first rung."""
    sweep = sweep_of(
        [trial_of(n, (1, values[n]), status="paused") for n in range(count)],
        total=factor**5,
        scheduler="hyperband",
        reduction_factor=factor,
        grace_images=1,
    )
    said = settle(sweep)
    assert len(said) == count <= bracket_sizes(sweep)[5]
    assert sum(s.action == "go on" for s in said) == max(1, count // factor)
