"""Synchronous schedulers: hyperband and population based training."""

import math
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.search_space import clip, draw
from orchestrator.config.sweep import Value
from orchestrator.sweeps.early_stopping import decide_trial
from orchestrator.sweeps.promotion import bracket_sizes, decide_promotions
from orchestrator.sweeps.records import IntermediateResult, Sweep, Trial
from support.sweep_driver import Driver, actions, make_sweep, make_trial, table

# hyperband


def test_hyperband_brackets_match_the_papers_table() -> None:
    """Li et al. 2018 (JMLR), eta 3 and R 81: 81, 34, 15, 8 and 5 trials start."""
    sweep = make_sweep(total=81, scheduler="hyperband", grace_images=1)
    assert bracket_sizes(sweep) == {4: 81, 3: 34, 2: 15, 1: 8, 0: 5}


@pytest.mark.parametrize(
    ("total", "grace_images", "factor", "most"),
    [(243, 1, 3, 5), (242, 1, 3, 4), (1000, 1, 10, 3), (8, 8, 2, 0), (8, 9, 2, 0)],
)
def test_the_number_of_brackets_is_the_number_of_whole_powers_of_the_factor(
    total: int, grace_images: int | None, factor: int, most: int
) -> None:
    """Even if a logarithm is rounded below the whole number, like that of 243 to base 3."""
    sweep = make_sweep(
        total=total,
        scheduler="hyperband",
        grace_images=grace_images,
        reduction_factor=factor,
    )
    assert max(bracket_sizes(sweep)) == most


def halve(sizes: dict[int, int], total: int, driver: Driver) -> dict[int, int]:
    """Compute the images that each trial sees in the end, bracket by bracket, rung by rung."""
    value_of, sign = driver.value_of, 1 if driver.sweep.section.mode == "min" else -1
    factor, numbers = driver.sweep.section.reduction_factor, iter(range(10**6))
    ends: dict[int, int] = {}

    def first_result_after(number: int, images: float) -> int:
        stride = driver.strides[number % len(driver.strides)]
        return math.ceil(Fraction(images) / stride) * stride

    def rank(number: int, images: Fraction) -> tuple[float, int]:
        value = value_of(make_trial(number), first_result_after(number, images))  # type: ignore[arg-type]
        return (sign * value if math.isfinite(value) else math.inf), number

    while len(ends) < driver.num_trials:
        for s, size in sizes.items():
            survivors = [n for n in (next(numbers) for _ in range(size)) if n < driver.num_trials]
            for i in range(s):
                images = Fraction(total, factor ** (s - i))
                survivors.sort(key=lambda n, images=images: rank(n, images))  # type: ignore[misc]
                keep = max(1, len(survivors) // factor)
                ends |= {n: first_result_after(n, images) for n in survivors[keep:]}  # type: ignore[arg-type]
                survivors = survivors[:keep]
            ends |= {n: first_result_after(n, total) for n in survivors}
    return ends


@pytest.mark.parametrize("seed", range(30))
def test_hyperband_ends_each_trial_where_plain_successive_halving_does(seed: int) -> None:
    """In any order, with results that skip rungs and drivers that die."""
    rng = random.Random(seed)
    factor, mode = rng.choice([2, 3]), rng.choice(["min", "max"])
    strides = rng.choice([(10,), (7, 30, 100), (90, 500)])
    sweep = make_sweep(total=900, scheduler="hyperband", reduction_factor=factor, mode=mode)
    driver = Driver(sweep, rng.choice([1, 5, 22, 40]), table(seed), rng, strides)
    driver.run()
    expected = halve(bracket_sizes(sweep), 900, driver)
    assert {t.number: t.images_seen for t in driver.trials} == expected


def test_the_best_three_of_nine_at_a_rung_are_promoted_with_a_reason() -> None:
    trials = [make_trial(n, (100, float(-n)), status="paused") for n in range(9)]
    decided = decide_promotions(make_sweep(trials, scheduler="hyperband"))
    assert actions(decided) == dict.fromkeys(range(6), "stop") | dict.fromkeys(
        (6, 7, 8), "continue"
    )
    assert decided[4].reason == "5th of 9 after 100 images; 3 promoted"
    assert [s.reason.split()[0] for s in decided[6:]] == ["3rd", "2nd", "1st"]


def test_a_rung_waits_for_active_trials_and_for_trials_yet_to_come() -> None:
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(6)]
    late = make_trial(6, (90, 0.0))
    sweep = make_sweep([*trials, late], scheduler="hyperband")
    assert decide_promotions(sweep) == []
    late.status = "failed"
    assert actions(decide_promotions(sweep)) == {0: "continue", 1: "continue"} | dict.fromkeys(
        range(2, 6), "stop"
    )
    assert decide_promotions(replace(sweep, num_trials=8)) == []


def test_a_full_bracket_does_not_wait_for_trials_of_the_next() -> None:
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(9)]
    sweep = make_sweep(trials, scheduler="hyperband", num_trials=30)
    assert len(decide_promotions(sweep)) == 9
    assert decide_promotions(replace(sweep, trials=trials[1:])) == []
    next_one = make_trial(9, (290, 0.0))
    assert len(decide_promotions(replace(sweep, trials=[*trials, next_one]))) == 9


def test_a_trial_pauses_once_at_each_rung_of_its_bracket() -> None:
    def pauses(number: int) -> list[int]:
        trial, found = make_trial(number), []
        for order, images in enumerate(range(20, 900, 20)):
            trial.results.append(IntermediateResult(images, (1.0,), order))
            decision = decide_trial(make_sweep([trial], scheduler="hyperband"), trial)
            found += [images] if decision.action == "pause" else []
        return found

    # Nine trials are in bracket 2, five in bracket 1, three in bracket 0.
    assert [pauses(n) for n in (0, 8, 9, 13, 14, 16, 17)] == [
        [100, 300], [100, 300], [300], [300], [], [], [100, 300],
    ]  # fmt: skip


def test_a_trial_that_failed_at_a_rung_takes_no_place_among_the_promoted() -> None:
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(4)]
    trials[0].status = "diverged"
    decided = decide_promotions(make_sweep(trials, scheduler="hyperband"))
    assert actions(decided) == {1: "continue", 2: "stop", 3: "stop"}
    assert decided[0].reason == "1st of 3 after 100 images; 1 promoted"


def test_a_promoted_trial_that_failed_later_is_not_replaced() -> None:
    """The driver died before it decided about the others."""
    trials = [make_trial(n, (100, float(n)), status="paused") for n in range(9)]
    trials[:2] = [make_trial(n, (100, float(n)), (120, 0.0), status="failed") for n in range(2)]
    decided = decide_promotions(make_sweep(trials, scheduler="hyperband"))
    assert actions(decided) == {2: "continue"} | dict.fromkeys(range(3, 9), "stop")


# pbt


def by_values(trial: Trial, images: int) -> float:
    """A metric that depends only on the trial's values, which may be copied, and its images."""
    rng = random.Random(f"{sorted(trial.values.items())}/{images}")
    return math.nan if rng.random() < 0.1 else rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_pbt_makes_the_same_copies_in_whatever_order_the_trials_run(seed: int) -> None:
    rng = random.Random(seed)
    count, quantile = rng.choice([1, 2, 5, 12]), rng.choice([0.2, 0.25, 0.5])
    sweep = make_sweep(total=900, scheduler="pbt", quantile=quantile, seed=seed)
    drivers = []
    for order in range(2):
        shuffled = random.Random(f"{seed}/{order}")
        drivers.append(Driver(sweep, count, by_values, shuffled, (60,), applies_all=True))
        drivers[-1].run()
    decided = [sorted(d.applied, key=lambda s: (s.reason.split(";")[0], s.number)) for d in drivers]
    assert decided[0] == decided[1]
    copies = max(1, math.floor(quantile * count)) if count > 1 else 0
    assert sum(s.action == "copy" for s in decided[0]) == 4 * copies
    assert all(t.status == "finished" and t.images_seen == 900 for t in drivers[0].trials)


@pytest.mark.parametrize("seed", range(20))
def test_pbt_ends_although_drivers_die_and_results_skip_intervals(seed: int) -> None:
    rng = random.Random(seed)
    strides = rng.choice([(30,), (17, 60, 400), (250, 300)])
    sweep = make_sweep(total=900, scheduler="pbt", grace_images=200)
    driver = Driver(sweep, rng.choice([2, 7]), table(seed), rng, strides)
    driver.run()
    assert all(trial.status == "finished" for trial in driver.trials)
    assert any(s.action == "copy" for s in driver.applied) or len(strides) > 1


def population(count: int, images: int = 180, **section: Any) -> Sweep:
    """Make a paused population where a higher number is worse."""
    trials = [make_trial(n, (images, float(n)), status="paused", at=n) for n in range(count)]
    return make_sweep(trials, scheduler="pbt", **section)


@pytest.mark.parametrize(
    ("count", "quantile", "copies"),
    [(8, 0.25, 2), (9, 0.25, 2), (2, 0.1, 1), (1, 0.5, 0), (3, 0.5, 1), (100, 0.29, 29)],
)
def test_pbt_replaces_the_worst_by_as_many_of_the_best(
    count: int, quantile: float, copies: int
) -> None:
    """As floats, 0.29 * 100 is a little less than 29."""
    decided = decide_promotions(population(count, quantile=quantile))
    assert [s.action for s in decided] == ["continue"] * (count - copies) + ["copy"] * copies
    assert {s.parent for s in decided if s.action == "copy"} <= set(range(copies))


def test_pbt_copies_from_all_of_the_best() -> None:
    parents = {s.parent for seed in range(20) for s in decide_promotions(population(8, seed=seed))}
    assert parents == {None, 0, 1}


def test_each_copy_and_each_interval_has_its_own_randomness() -> None:
    first, second = (
        decide_promotions(population(40, images, quantile=0.5))[20:] for images in (180, 360)
    )
    assert len({s.parent for s in first}) > 8
    assert [s.parent for s in first] != [s.parent for s in second]


def test_pbt_names_the_parent_and_copies_its_other_values() -> None:
    last = decide_promotions(population(8))[-1]
    assert last.reason == f"8th of 8 after 180 images; continues as a copy of trial {last.parent}"
    assert last.values is not None
    assert last.values["model.other"] == last.parent


def test_pbt_ranks_a_nonfinite_metric_last() -> None:
    sweep = population(4, quantile=0.25, mode="max")
    sweep.trials[3].results[:] = [IntermediateResult(180, (math.inf, 0.0), 3)]
    assert actions(decide_promotions(sweep)) == {
        0: "continue",
        1: "continue",
        2: "continue",
        3: "copy",
    }


def test_pbt_waits_for_the_whole_population_and_for_trials_that_still_save() -> None:
    sweep = population(4)
    assert decide_promotions(replace(sweep, num_trials=5)) == []
    sweep.trials[1].status = "running"
    assert decide_promotions(sweep) == []
    sweep.trials[1].status = "diverged"
    assert actions(decide_promotions(sweep)) == {0: "continue", 2: "continue", 3: "copy"}
    assert decide_promotions(sweep)[-1].reason.startswith("3rd of 3")
    sweep.trials[1].status = "running"
    sweep.trials[1].results[:] = [IntermediateResult(170, (0.0,), 1)]
    assert decide_promotions(sweep) == []


def test_a_decision_that_was_applied_is_not_repeated() -> None:
    sweep = population(4)
    before = decide_promotions(sweep)
    for number in (0, 3):
        sweep.trials[number].status = "waiting"
    assert decide_promotions(sweep) == [s for s in before if s.number in (1, 2)]


def test_a_trial_pauses_once_in_each_interval() -> None:
    trial, found = make_trial(0), []
    for order, images in enumerate([100, 200, 300, 400, 850, 860, 900]):
        trial.results.append(IntermediateResult(images, (1.0,), order))
        decision = decide_trial(make_sweep([trial], scheduler="pbt"), trial)
        found += [(images, decision.reason)] if decision.action == "pause" else []
    assert found == [
        (200, "waits for other trials at 180 images"),
        (400, "waits for other trials at 360 images"),
        (850, "waits for other trials at 720 images"),
    ]


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_copy_has_values_from_the_search_space(seed: int) -> None:
    """Even if the parent's values are at an end of their range."""
    rng, sweep = random.Random(seed), population(6, quantile=0.5, seed=seed)
    space = sweep.section.space
    for trial in sweep.trials:
        values = {name: draw(distribution, rng) for name, distribution in space.items()}
        for name in ("model.learning_rate", "model.gamma", "model.channels", "model.depth"):
            if rng.random() < 0.5:
                values[name] = clip(space[name], rng.choice([-1e9, 1e9]))
        trial.segments = [replace(trial.segments[0], values=values)]
    for promotion in decide_promotions(sweep)[3:]:
        assert promotion.values is not None
        for name, distribution in space.items():
            value = promotion.values[name]
            assert clip(distribution, value) == value
            assert type(clip(distribution, value)) is type(value)


def test_a_copy_has_perturbed_or_resampled_values() -> None:
    """Over many seeds: three in four are 0.8 or 1.2 times the parent's, equally often."""
    rates: dict[str, int] = {"0.8": 0, "1.2": 0, "resampled": 0}
    norms: dict[Value, int] = {"batch": 0, "group": 0, None: 0}
    for seed in range(2000):
        copy = decide_promotions(population(2, seed=seed))[-1]
        assert copy.values is not None
        factor = copy.values["model.gamma"] / 0.5  # type: ignore[operator]
        close = {"0.8": 0.8, "1.2": 1.2}
        near = [name for name, f in close.items() if math.isclose(factor, f)]
        rates[near[0] if near else "resampled"] += 1
        norms[copy.values["model.norm"]] += 1
    assert rates["0.8"] == pytest.approx(750, abs=75)
    assert rates["1.2"] == pytest.approx(750, abs=75)
    assert rates["resampled"] == pytest.approx(500, abs=75)
    assert norms["batch"] == pytest.approx(1500 + 500 / 3, abs=75)
    assert norms["group"] == pytest.approx(norms[None], abs=75)
