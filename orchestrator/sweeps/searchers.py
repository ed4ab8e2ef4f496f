"""What to try next: a function of what was tried, the same each time it is asked."""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.config.search_space import clip, draw, grid, last_step, on_step
from orchestrator.config.sweep import Distribution, SweepSection, Value
from orchestrator.seeding import seed_of
from orchestrator.sweeps.records import Sweep, Trial

if TYPE_CHECKING:
    import optuna

MOST_AT_RANDOM = 10
"""Configurations that tpe draws at random before it learns from them; a quarter of few."""


def num_configurations(section: SweepSection) -> int:
    """How many configurations the search tries."""
    if section.searcher != "grid":
        assert section.trials is not None, "job_rules.py wants it"
        return section.trials
    whole = len(grid(section.space))
    return min(whole, section.trials or whole)


def propose(sweep: Sweep, configuration: int) -> dict[str, Value]:
    """The values of the configuration with this number, from the trainings there are."""
    section = sweep.section
    values = drawn(section, configuration)
    if section.searcher == "grid":
        return values | grid(section.space)[configuration]
    if section.searcher == "tpe":
        at_random = min(MOST_AT_RANDOM, max(2, num_configurations(section) // 4))
        if sum(_is_judged(trial) for trial in sweep.trials) >= at_random * section.seeds_per_config:
            return _by_tpe(sweep, configuration)
    return values


def drawn(section: SweepSection, configuration: int) -> dict[str, Value]:
    """Independent draws, a pure function of the sweep's seed and the number."""
    rng = random.Random(seed_of("sweep", section.seed, configuration))
    return {name: draw(distribution, rng) for name, distribution in section.space.items()}


def _is_judged(trial: Trial) -> bool:
    """Whether tpe can learn from it: it is over, or waits at a rung."""
    return trial.is_over or trial.status == "paused"


def _by_tpe(sweep: Sweep, configuration: int) -> dict[str, Value]:
    """Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011, in Optuna's form.

    Trainings that run count as bad ones, so that two at a time do not try the same; those without
    a number in the end count as bad ones too.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    section = sweep.section
    space = {name: _for_optuna(given) for name, given in section.space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            multivariate=True,
            constant_liar=True,
            seed=seed_of("tpe", section.seed, configuration) % 2**32,
        )
    down, up = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    directions = [down if mode == "min" else up for mode in section.modes]
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials(_history(sweep, space))
    found = study.ask(space).params
    return {name: _from_optuna(given, found[name]) for name, given in section.space.items()}


def _history(
    sweep: Sweep, space: Mapping[str, "optuna.distributions.BaseDistribution"]
) -> list["optuna.trial.FrozenTrial"]:
    """The configurations in their order, as Optuna wants them."""
    from optuna.trial import create_trial

    grouped: dict[int, list[Trial]] = {}
    for trial in sorted(sweep.trials, key=lambda trial: trial.number):
        grouped.setdefault(trial.configuration, []).append(trial)
    found = []
    for _, trials in sorted(grouped.items()):
        values = trials[0].legs[0].values
        params = {n: _to_optuna(given, values[n]) for n, given in sweep.section.space.items()}
        result = _result(sweep, trials)
        found.append(create_trial(params=params, distributions=dict(space), **result))
    return found


def _result(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """How a configuration's trainings ended."""
    from optuna.trial import TrialState

    bad = {"state": TrialState.RUNNING}
    if len(trials) < sweep.section.seeds_per_config or not all(map(_is_judged, trials)):
        return bad
    ended = [trial.looks[-1] for trial in trials if trial.looks]
    broken = any(trial.status in ("diverged", "failed") for trial in trials)
    if broken or not ended or not all(math.isfinite(v) for look in ended for v in look.values):
        return bad  # Optuna forgets those that fail, and would draw from where they did again
    columns = zip(*(look.values for look in ended), strict=True)
    means = [sum(column) / len(ended) for column in columns]
    if any(trial.status in ("stopped", "paused") for trial in trials) and len(means) == 1:
        seen = min(look.images_seen for look in ended)
        return {"state": TrialState.PRUNED, "intermediate_values": {seen: means[0]}}
    return {"state": TrialState.COMPLETE, "values": means}


def _for_optuna(given: Distribution) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match given.kind:
        case "uniform" | "loguniform":
            low, high = _floats(given)
            return FloatDistribution(low, high, log=given.kind == "loguniform")
        case "quniform":
            return IntDistribution(0, last_step(_floats(given)))
        case "randint":
            low, high = _floats(given)
            return IntDistribution(int(low), int(high))
        case _:
            return CategoricalDistribution(given.given)


def _to_optuna(given: Distribution, value: Value) -> Value:
    """Optuna gets the number of steps: it would take 0.1 + 2 * 0.1 for more than 0.3."""
    if given.kind != "quniform" or isinstance(value, str | None):
        return value
    low, _, step = _floats(given)
    return round((value - low) / step)


def _from_optuna(given: Distribution, value: Value) -> Value:
    if given.kind == "quniform":
        assert isinstance(value, int)
        return on_step(_floats(given), value)
    return clip(given, value)


def _floats(given: Distribution) -> list[float]:
    return [float(value) for value in given.given if value is not None]
