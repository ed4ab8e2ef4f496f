"""Searchers: the distributions of their values, which depend only on the records."""

import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.config.search_space import num_configurations
from orchestrator.config.sweep import Distribution, SweepSection, Value
from orchestrator.sweeps.records import IntermediateResult, Status, Sweep, Trial, TrialSegment
from orchestrator.sweeps.searchers import suggest_values
from support.trial_records import parse_trial

SPACE: dict[str, Any] = {
    "model.learning_rate": {"loguniform": [1e-5, 1e-2]},
    "model.gamma": {"uniform": [0.3, 0.9]},
    "model.channels": {"quniform": [16, 64, 16]},
    "model.dropout": {"quniform": [0.1, 0.3, 0.1]},
    "model.depth": {"randint": [1, 4]},
    "model.norm": {"choice": ["batch", "group", None, True]},
}
BOWL: dict[str, Any] = {
    "rate": {"loguniform": [1e-5, 1e-1]},
    "gamma": {"uniform": [0.0, 1.0]},
    "depth": {"randint": [0, 10]},
}
TOTAL = 900


def make_sweep(earlier: Sequence[Trial] = (), **section: Any) -> Sweep:
    given = SweepSection.model_validate({"metric": "m", "space": SPACE, "trials": 40} | section)
    return Sweep("s", "j", given, TOTAL, earlier, num_trials=num_configurations(given))


def make_trial(
    number: int,
    values: Mapping[str, Value],
    *metrics: float,
    status: Status = "finished",
    num_seeds: int = 1,
) -> Trial:
    results = [IntermediateResult(TOTAL, metrics, number)] if metrics else []
    configuration, seed_index = divmod(number, num_seeds)
    return Trial(
        number,
        configuration,
        seed_index,
        [TrialSegment(f"r{number}", values)],
        status,
        results=results,
    )


def number(value: Value) -> float:
    assert isinstance(value, int | float)
    return float(value)


def bowl(values: Mapping[str, Value]) -> float:
    """Quadratic bowl: 0 at a rate of 1e-3, a gamma of 0.7 and a depth of 4."""
    rate, gamma, depth = (number(values[name]) for name in ("rate", "gamma", "depth"))
    return (math.log10(rate) + 3) ** 2 + 4 * (gamma - 0.7) ** 2 + ((depth - 4) / 5) ** 2


def is_in_range(given: Distribution, value: Value) -> bool:
    """Check a value against its distribution, independently of the searcher."""
    match given.kind, given.args:
        case (("choice" | "grid"), options):
            return any(type(value) is type(option) and value == option for option in options)
        case "randint", [low, high]:
            return type(value) is int and value in range(int(str(low)), int(str(high)) + 1)
        case "quniform", [low, high, step]:
            places = itertools.count()
            steps = itertools.takewhile(
                lambda s: s <= number(high) + 1e-9, (number(low) + n * number(step) for n in places)
            )
            is_integer = all(float(str(part)).is_integer() for part in (low, step))
            kind = int if is_integer else float
            found = number(value)
            return type(value) is kind and any(math.isclose(s, found) for s in steps)
        case _, [low, high]:
            return type(value) is float and number(low) <= value <= number(high)
    raise AssertionError(given)


def run_trials(sweep: Sweep, count: int, metric: Any = bowl) -> list[Trial]:
    """Run trials one after another."""
    trials: list[Trial] = []
    for n in range(count):
        values = suggest_values(replace(sweep, trials=trials), n)
        trials.append(make_trial(n, values, metric(values)))
    return trials


def copied(trials: Sequence[Trial]) -> list[Trial]:
    """Copy trials through JSON, as the storage does."""
    return [parse_trial(json.dumps(trial.to_json())) for trial in trials]


# random


def draws(count: int = 2000, **section: Any) -> list[dict[str, Value]]:
    sweep = make_sweep(**{"seed": 3, **section})
    return [suggest_values(sweep, n) for n in range(count)]


def test_random_values_follow_their_distributions() -> None:
    """Kolmogorov-Smirnov test for numbers (log of rates), chi-squared test for the others."""
    found = draws()
    rates = [math.log(number(values["model.learning_rate"])) for values in found]
    low, high = math.log(1e-5), math.log(1e-2)
    assert stats.kstest(rates, stats.uniform(low, high - low).cdf).pvalue > 0.01
    gammas = [number(values["model.gamma"]) for values in found]
    assert stats.kstest(gammas, stats.uniform(0.3, 0.6).cdf).pvalue > 0.01
    for name, kinds in (
        ("model.channels", [16, 32, 48, 64]),
        ("model.dropout", [0.1, 0.2, 0.3]),
        ("model.depth", [1, 2, 3, 4]),
        ("model.norm", ["batch", "group", None, True]),
    ):
        counts = [sum(values[name] == kind for values in found) for kind in kinds]
        assert sum(counts) == len(found), name
        assert stats.chisquare(counts).pvalue > 0.01, name


def test_fields_and_configurations_are_sampled_independently() -> None:
    found = draws()
    rates = [number(values["model.learning_rate"]) for values in found]
    gammas = [number(values["model.gamma"]) for values in found]
    assert abs(stats.spearmanr(rates, gammas).statistic) < 0.06
    assert abs(stats.spearmanr(rates[:-1], rates[1:]).statistic) < 0.06


def test_random_values_depend_only_on_the_seed_and_the_configuration() -> None:
    whole = draws(40)
    earlier = [make_trial(n, values, float(n)) for n, values in enumerate(whole[:20])]
    earlier[3].status = "running"
    for n in random.Random(0).sample(range(40), 40):
        for trials in ([], earlier, earlier[::-1]):
            assert suggest_values(make_sweep(trials, seed=3), n) == whole[n]
            assert suggest_values(make_sweep(trials, seed=3, trials=99, mode="max"), n) == whole[n]
    others = draws(40, seed=4)
    for name in ("model.learning_rate", "model.gamma"):
        assert not {v[name] for v in whole} & {v[name] for v in others}
        assert len({v[name] for v in whole}) == 40


def test_an_added_field_leaves_the_values_of_earlier_fields_unchanged() -> None:
    more = draws(20, space=SPACE | {"model.last": {"uniform": [0, 1]}})
    assert [{k: v for k, v in values.items() if k != "model.last"} for values in more] == draws(20)


# grid


def test_a_grid_is_the_product_in_order_and_other_fields_are_sampled() -> None:
    space = {"a": {"grid": [1, 2, 3]}, "r": {"uniform": [0, 1]}, "b": {"grid": ["x", None]}}
    sweep = make_sweep(searcher="grid", space=space, trials=None)
    assert num_configurations(sweep.section) == 6
    found = [suggest_values(sweep, n) for n in range(6)]
    assert [(v["a"], v["b"]) for v in found] == list(itertools.product([1, 2, 3], ["x", None]))
    assert len({v["r"] for v in found}) == 6
    assert all(list(v) == ["a", "r", "b"] for v in found)


@pytest.mark.parametrize(("trials", "expected"), [(None, 6), (4, 4), (6, 6), (99, 6)])
def test_a_grid_is_limited_to_the_given_number_of_trials(trials: int | None, expected: int) -> None:
    space = {"a": {"grid": [1, 2, 3]}, "b": {"grid": ["x", None]}}
    sweep = make_sweep(searcher="grid", space=space, trials=trials)
    assert num_configurations(sweep.section) == expected
    found = [tuple(suggest_values(sweep, n).values()) for n in range(expected)]
    assert found == list(itertools.product([1, 2, 3], ["x", None]))[:expected]


# tpe


@pytest.mark.parametrize(
    ("trials", "at_random"), [(4, 2), (8, 2), (20, 5), (40, 10), (400, 10), (1, 2)]
)
def test_tpe_starts_with_the_values_of_random_search(trials: int, at_random: int) -> None:
    """A quarter of the configurations, from two to ten; then it learns."""
    sweep = make_sweep(searcher="tpe", space=BOWL, trials=trials)
    plain = make_sweep(searcher="random", space=BOWL, trials=trials)
    earlier = [make_trial(n, suggest_values(plain, n), float(n)) for n in range(at_random)]
    for n in range(at_random):
        assert suggest_values(replace(sweep, trials=earlier[:n]), n) == suggest_values(plain, n)
    learnt = suggest_values(replace(sweep, trials=earlier), at_random)
    assert learnt != suggest_values(plain, at_random)
    earlier[0].status = "running"
    assert suggest_values(replace(sweep, trials=earlier), at_random) == suggest_values(
        plain, at_random
    )


def test_tpe_beats_random_search_on_a_quadratic_bowl() -> None:
    """Mean over 5 seeds of the best of 40."""

    def best(searcher: str, seed: int) -> float:
        sweep = make_sweep(searcher=searcher, space=BOWL, seed=seed)
        return min(trial.last_value() for trial in run_trials(sweep, 40))

    tpe, plain = ([best(searcher, seed) for seed in range(5)] for searcher in ("tpe", "random"))
    assert statistics.mean(tpe) < 0.5 * statistics.mean(plain)


def test_tpe_maximizes_with_mode_max() -> None:
    def gamma(mode: str) -> float:
        sweep = make_sweep(searcher="tpe", space=BOWL, mode=mode)
        trials = run_trials(sweep, 40, lambda values: number(values["gamma"]))
        return statistics.mean(number(trial.values["gamma"]) for trial in trials[20:])

    assert gamma("min") < 0.25
    assert gamma("max") > 0.75


def test_tpe_prefers_good_choices_and_steps() -> None:
    """Among four channel counts and four norms."""

    def metric(values: Mapping[str, Value]) -> float:
        return 2 * (values["model.norm"] is not None) + abs(number(values["model.channels"]) - 48)

    trials = run_trials(make_sweep(searcher="tpe", seed=1), 40, metric)[20:]
    assert sum(trial.values["model.norm"] is None for trial in trials) >= 10
    assert sum(trial.values["model.channels"] == 48 for trial in trials) >= 10


def mixed_sweep(seed: int, **section: Any) -> Sweep:
    """Make a sweep whose trials ended in all ways or run, with one seed or three."""
    rng = random.Random(seed)
    num_seeds, metrics = rng.choice([1, 3]), rng.choice([1, 2])
    if metrics == 2:
        section |= {"metric": ["a", "b"], "mode": ["min", "max"]}
    sweep = make_sweep(searcher="tpe", seeds_per_config=num_seeds, seed=seed, **section)
    kinds: list[Status] = ["finished"] * 6 + ["stopped", "diverged", "failed", "running", "paused"]  # type: ignore[assignment]
    trials: list[Trial] = []
    for n in range(16 * num_seeds + rng.randint(0, 2)):
        configuration, seed_index = divmod(n, num_seeds)
        values = (
            trials[-1].values
            if seed_index
            else suggest_values(replace(sweep, trials=()), configuration)
        )
        found = [rng.choice([rng.gauss(0, 1), math.nan, rng.random()]) for _ in range(metrics)]
        status: Status = rng.choice(kinds)
        if status == "finished" and rng.random() < 0.9:
            found = [rng.gauss(0, 1) for _ in found]
        trial = make_trial(n, values, *found, status=status, num_seeds=num_seeds)
        if status == "stopped":
            trial.results = [IntermediateResult(rng.randrange(100, 900), tuple(found), n)]
        if rng.random() < 0.1:
            trial.results, trial.status = [], rng.choice(["failed", "running", "waiting"])
        trials.append(trial)
    return replace(sweep, trials=trials)


@pytest.mark.parametrize("seed", range(25))
def test_tpe_suggests_the_same_after_a_restart_in_any_order_of_the_records(seed: int) -> None:
    sweep = mixed_sweep(seed)
    following = 1 + max(trial.configuration for trial in sweep.trials)
    expected = suggest_values(sweep, following)
    read = copied(sweep.trials)
    for trial in read:  # A trial that ran when the driver died waits to resume.
        trial.status = "waiting" if trial.status == "running" else trial.status
    shuffled = random.Random(seed).sample(read, len(read))
    for trials in (read, read[::-1], shuffled):
        assert suggest_values(replace(sweep, trials=trials), following) == expected


def test_a_resumed_tpe_sweep_suggests_the_values_of_an_uninterrupted_one() -> None:
    sweep = make_sweep(searcher="tpe", space=BOWL)
    whole = run_trials(sweep, 24)
    for kept in (0, 9, 10, 11, 23):
        trials = copied(whole[:kept])
        for n in range(kept, 24):
            values = suggest_values(replace(sweep, trials=trials), n)
            trials.append(make_trial(n, values, bowl(values)))
        assert trials == whole


def test_tpe_suggests_different_values_to_concurrent_trials() -> None:
    sweep = make_sweep(searcher="tpe", space=BOWL)
    trials = run_trials(sweep, 12)
    for n in range(12, 20):
        values = suggest_values(replace(sweep, trials=trials), n)
        trials.append(make_trial(n, values, status="running"))
    running = [trial.values for trial in trials[12:]]
    for one, other in itertools.combinations(running, 2):
        assert one["rate"] != other["rate"]
        assert one["gamma"] != other["gamma"]
    # The same records and another number give other values.
    asked = [suggest_values(replace(sweep, trials=trials), n) for n in range(20, 25)]
    assert len({values["rate"] for values in asked}) == 5


def test_tpe_avoids_the_values_of_running_trials() -> None:
    """Running trials count as bad, so fewer suggestions are near them."""
    near, alone = 0, 0
    for seed in range(20):
        sweep = make_sweep(searcher="tpe", space={"x": {"uniform": [0, 1]}}, seed=seed)
        trials = [make_trial(n, {"x": n / 12}, abs(n / 12 - 0.5)) for n in range(12)]
        waiting = [make_trial(n, {"x": 0.5}, status="running") for n in range(12, 20)]
        for others in ([], waiting):
            x = number(suggest_values(replace(sweep, trials=[*trials, *others]), 20)["x"])
            is_near = abs(x - 0.5) < 0.05
            near, alone = near + (is_near and bool(others)), alone + (is_near and not others)
    assert near < alone / 2


def mean_suggestion(end: Any) -> float:
    """Mean of the suggestions if ``end`` sets how the trials below 0.5 ended."""
    found = []
    for seed in range(8):
        sweep = make_sweep(searcher="tpe", space={"x": {"uniform": [0, 1]}}, seed=seed)
        trials = [make_trial(n, {"x": (n + 0.5) / 16}, 1 + (n * 7 % 16) / 100) for n in range(16)]
        for trial in trials[:8]:
            end(trial)
        proposed = [
            number(suggest_values(replace(sweep, trials=trials), n)["x"]) for n in range(16, 20)
        ]
        found.append(statistics.mean(proposed))
    return statistics.mean(found)


def test_tpe_ranks_stopped_trials_below_complete_ones_and_broken_ones_as_bad() -> None:
    """A metric of 0 is the best, but only of a complete trial."""

    def ended(status: Status, value: float) -> Any:
        def end(trial: Trial) -> None:
            trial.status, trial.results = status, [IntermediateResult(300, (value,), trial.number)]

        return end

    assert mean_suggestion(ended("finished", 0.0)) < 0.35
    assert mean_suggestion(ended("stopped", 0.0)) > 0.5
    assert mean_suggestion(ended("finished", 9.0)) > 0.65
    broken = [mean_suggestion(ended(status, 0.0)) for status in ("diverged", "failed")]
    assert broken[0] == broken[1] == mean_suggestion(ended("finished", math.nan))
    assert broken[0] > 0.5


def test_tpe_judges_a_configuration_by_the_mean_over_its_seeds() -> None:
    def suggest_after(metrics: Sequence[Sequence[float]], **section: Any) -> dict[str, Value]:
        num_seeds = len(metrics[0])
        sweep = make_sweep(searcher="tpe", space=BOWL, seeds_per_config=num_seeds, **section)
        trials = [
            make_trial(c * num_seeds + r, suggest_values(sweep, c), m, num_seeds=num_seeds)
            for c, row in enumerate(metrics)
            for r, m in enumerate(row)
        ]
        return suggest_values(replace(sweep, trials=trials), len(metrics))

    rng = random.Random(2)
    spread = [[0.25 * rng.randrange(20), 0.25 * rng.randrange(20)] for _ in range(12)]
    means = [[sum(row) / 2] for row in spread]
    assert suggest_after(spread) == suggest_after(means)
    assert suggest_after(spread) != suggest_after([[row[0]] for row in spread])


def test_a_configuration_with_a_running_trial_counts_as_running() -> None:
    sweep = make_sweep(searcher="tpe", space=BOWL, seeds_per_config=2)
    trials = [
        make_trial(2 * c + r, suggest_values(replace(sweep, trials=()), c), float(c), num_seeds=2)
        for c in range(12)
        for r in range(2)
    ]
    trials[-1].status, trials[-1].results = "running", []
    asked = suggest_values(replace(sweep, trials=trials), 12)
    trials[-2].results = [IntermediateResult(TOTAL, (-99.0,), 0)]
    assert suggest_values(replace(sweep, trials=trials), 12) == asked
    trials[-2].status, trials[-2].results = "running", []
    assert suggest_values(replace(sweep, trials=trials), 12) == asked


def test_tpe_with_two_metrics_approaches_the_pareto_front() -> None:
    """The front of x**2 and (x - 1)**2 on [-3, 3] is [0, 1], a sixth of the range."""
    space = {"x": {"uniform": [-3, 3]}}
    section: dict[str, Any] = {
        "metric": ["a", "b"],
        "mode": ["min", "max"],
        "searcher": "tpe",
        "space": space,
    }
    shares = []
    for seed in range(4):
        sweep, trials = make_sweep(seed=seed, **section), list[Trial]()
        for n in range(40):
            values = suggest_values(replace(sweep, trials=trials), n)
            x = number(values["x"])
            trials.append(make_trial(n, values, x**2, -((x - 1) ** 2)))
        late = [number(trial.values["x"]) for trial in trials[20:]]
        shares.append(statistics.mean(-0.1 <= x <= 1.1 for x in late))
    assert statistics.mean(shares) > 0.4  # random search: 0.2, standard deviation 0.045


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_all_values_of_a_long_sweep_have_the_right_range_and_type(searcher: str) -> None:
    for seed in range(3):
        sweep = make_sweep(searcher=searcher, seed=seed)
        rng = random.Random(seed)
        trials = run_trials(sweep, 40, lambda values: rng.random())  # noqa: B023
        for trial in trials:
            assert list(trial.values) == list(SPACE)
            for name, value in trial.values.items():
                given = sweep.section.space[name]
                assert is_in_range(given, value), (trial.number, name, value)


@pytest.mark.parametrize("seed", range(25))
def test_values_are_in_range_however_earlier_trials_ended(seed: int) -> None:
    sweep = mixed_sweep(seed)
    following = 1 + max(trial.configuration for trial in sweep.trials)
    for n in range(following, following + 3):
        values = suggest_values(sweep, n)
        assert all(is_in_range(sweep.section.space[name], v) for name, v in values.items())


@settings(deadline=None, max_examples=30)
@given(
    low=st.integers(-50, 50),
    count=st.integers(1, 6),
    step=st.sampled_from([0.1, 0.05, 0.3, 1, 2, 1e-5]),
    rest=st.sampled_from([0, 0.5]),
    seed=st.integers(0, 99),
)
def test_quniform_hits_every_step_exactly(
    low: int, count: int, step: float, rest: float, seed: int
) -> None:
    """Even if a step such as 0.1 + 2 * 0.1 is a little more than 0.3."""
    first = round(low * step, 10)
    given = [first, round(first + (count + rest) * step, 10), step]
    try:
        section: dict[str, Any] = {"space": {"x": {"quniform": given}}, "seed": seed}
        sweep = make_sweep(searcher="tpe", trials=8, **section)
    except ValueError:
        return  # The rounded step is larger than the range.
    allowed = {round(first + n * step, 9) for n in range(count + 1)}
    trials: list[Trial] = []
    for n in range(12):
        values = suggest_values(replace(sweep, trials=trials), n)
        assert round(number(values["x"]), 9) in allowed
        trials.append(make_trial(n, values, -number(values["x"])))
