"""Who is stopped early, by which rule: against other writings of the same rules."""

import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sweeps.early_stopping import judge, settle
from orchestrator.sweeps.promotion import bracket_sizes
from orchestrator.sweeps.records import Look, Sweep, Trial
from support.sweep_driver import sweep_of, trial_of

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
    last.looks = [Look(899, (9.0,), 99)]
    assert judge(sweep, last).action != "go on"


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
