"""Early stopping, compared with independent implementations of the rules."""

import json
import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sweeps.early_stopping import decide_trial
from orchestrator.sweeps.promotion import bracket_sizes, decide_promotions
from orchestrator.sweeps.records import IntermediateResult, Sweep, Trial
from support.sweep_driver import make_sweep, make_trial
from support.trial_records import parse_trial

# fifo


def test_fifo_stops_no_trial_however_bad() -> None:
    trials = [make_trial(n, (100, 0.0), (800, 0.0)) for n in range(5)]
    bad = make_trial(9, (800, math.nan), at=99)
    sweep = make_sweep([*trials, bad], scheduler="fifo")
    assert decide_trial(sweep, bad).action == "continue"
    bad.status = "paused"
    assert decide_promotions(sweep) == []


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband", "pbt"])
def test_no_scheduler_decides_about_a_complete_trial(scheduler: str) -> None:
    trials = [make_trial(n, (100, 0.0), (300, 0.0), (900, 0.0)) for n in range(5)]
    last = make_trial(9, (900, 9.0), at=99)
    sweep = make_sweep([*trials, last], scheduler=scheduler)
    assert decide_trial(sweep, last).action == "continue"
    last.results = [IntermediateResult(899, (9.0,), 99)]
    assert decide_trial(sweep, last).action != "continue"


# median


def slow_median(sweep: Sweep, trial: Trial, grace_images: int) -> str:
    """The median rule, implemented with fractions."""
    sign, seen = (1 if sweep.section.mode == "max" else -1), trial.results[-1].images_seen

    def good(result: IntermediateResult) -> Fraction | float:
        value = result.values[0]
        return sign * Fraction(value) if math.isfinite(value) else -math.inf

    means = []
    for other in sweep.trials:
        if other is trial or not any(result.images_seen >= seen for result in other.results):
            continue
        till = [good(result) for result in other.results if result.images_seen <= seen]
        if till:
            means.append(sum(till) / len(till))
    means.sort()
    if seen < grace_images or seen >= sweep.total_images or len(means) < 3:
        return "continue"
    middle = (means[len(means) // 2] + means[(len(means) - 1) // 2]) / 2
    return "stop" if max(good(result) for result in trial.results) < middle else "continue"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_median_rule_decides_as_a_slow_implementation(mode: str) -> None:
    seen: dict[str, int] = {"continue": 0, "stop": 0}
    for seed in range(400):
        rng = random.Random(f"{mode}/{seed}")
        trials = []
        for number in range(rng.randint(2, 12)):
            images, level = sorted(rng.sample(range(50, 1000, 25), 8)), rng.gauss(0, 2)
            values = [math.nan if rng.random() < 0.03 else level + rng.gauss(0, 1) for _ in images]
            trials.append(make_trial(number, *zip(images, values, strict=True)))
        grace_images = rng.choice([None, 300])
        for number in range(len(trials)):
            trial = replace(trials[number], results=trials[number].results[: rng.randint(1, 8)])
            others = [*trials[:number], *trials[number + 1 :]]
            sweep = make_sweep(
                [*others, trial], scheduler="median", mode=mode, grace_images=grace_images
            )
            expected = slow_median(sweep, trial, grace_images or 100)
            assert decide_trial(sweep, trial).action == expected
            seen[expected] += 1
    assert min(seen.values()) > 300


def test_the_median_rule_needs_three_other_trials_and_compares_the_best_value_so_far() -> None:
    others = [make_trial(n, (100, 0.5), (200, 0.3)) for n in range(3)]
    bad, once_good = make_trial(7, (200, 0.5)), make_trial(8, (100, 0.2), (200, 0.5))
    same, early = make_trial(9, (200, 0.4)), make_trial(10, (99, 7.0))
    sweep = make_sweep([*others, bad], scheduler="median")
    assert decide_trial(sweep, bad).action == "stop"
    assert decide_trial(sweep, bad).reason == (
        "best value 0.5 in 200 images; the median of the means of 3 other trials is 0.4"
    )
    for trial in (once_good, same, early):
        assert (
            decide_trial(make_sweep([*others, trial], scheduler="median"), trial).action
            == "continue"
        )
    assert (
        decide_trial(make_sweep([*others[:2], bad], scheduler="median"), bad).action == "continue"
    )


def test_the_median_rule_stops_no_trial_because_of_a_rounded_mean() -> None:
    """As floats, (0.1 + 0.1 + 0.1) / 3 is more than 0.1."""
    trials = [make_trial(n, *((images, 0.1) for images in (100, 200, 300))) for n in range(4)]
    assert (
        decide_trial(make_sweep(trials, scheduler="median", mode="max"), trials[0]).action
        == "continue"
    )


# any scheduler


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), scheduler=st.sampled_from(["asha", "hyperband", "median", "pbt"])
)
def test_decisions_do_not_depend_on_the_order_of_the_records(seed: int, scheduler: str) -> None:
    rng = random.Random(seed)
    trials, order = [], 0
    for number in range(rng.randint(1, 12)):
        trial = make_trial(number, status=rng.choice(["running", "paused", "paused", "stopped"]))
        for images in sorted(rng.sample(range(20, 900, 20), rng.randint(0, 8))):
            order += 1
            trial.results.append(
                IntermediateResult(images, (rng.choice([1.0, 2.0, math.nan]),), order)
            )
        trials.append(trial)
    sweep = make_sweep(trials, scheduler=scheduler)
    other = replace(sweep, trials=rng.sample(trials, len(trials)))
    read = [parse_trial(json.dumps(trial.to_json())) for trial in other.trials]
    again = replace(other, trials=read)
    decided = decide_promotions(sweep)
    assert decided == decide_promotions(other) == decide_promotions(again)
    assert all(a.number < b.number for a, b in pairwise(decided))
    assert {s.number for s in decided} <= {t.number for t in trials if t.status == "paused"}
    by_number = {t.number: t for t in read}
    for trial in trials:
        assert decide_trial(sweep, trial) == decide_trial(again, by_number[trial.number])


@settings(deadline=None)
@given(
    count=st.integers(1, 25), factor=st.integers(2, 5), values=st.lists(st.floats(), min_size=25)
)
def test_no_more_trials_than_their_share_are_promoted_from_a_rung(
    count: int, factor: int, values: list[float]
) -> None:
    """All of them are paused at the first rung of the first bracket."""
    sweep = make_sweep(
        [make_trial(n, (1, values[n]), status="paused") for n in range(count)],
        total=factor**5,
        scheduler="hyperband",
        reduction_factor=factor,
        grace_images=1,
    )
    decided = decide_promotions(sweep)
    assert len(decided) == count <= bracket_sizes(sweep)[5]
    assert sum(s.action == "continue" for s in decided) == max(1, count // factor)
