"""Searchers: the values to try next, a pure function of the sweep's records."""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.config.search_space import (
    clip,
    draw,
    grid_point,
    num_configurations,
    num_steps,
    value_at_step,
)
from orchestrator.config.sweep import Distribution, SweepSection, Value
from orchestrator.seeding import seed_of
from orchestrator.sweeps.records import Sweep, Trial

if TYPE_CHECKING:
    import optuna

MAX_STARTUP_CONFIGURATIONS = 10
"""Configurations that tpe draws at random before it models the results; a quarter of a small
sweep's."""


def suggest_values(sweep: Sweep, configuration: int) -> dict[str, Value]:
    """Suggest the values of configuration number ``configuration``, given the trials so far."""
    section = sweep.section
    values = sample_values(section, configuration)
    if section.searcher == "grid":
        return values | grid_point(section.space, configuration)
    if section.searcher == "tpe":
        num_startup = min(MAX_STARTUP_CONFIGURATIONS, max(2, num_configurations(section) // 4))
        num_judged = sum(_is_judged(trial) for trial in sweep.trials)
        if num_judged >= num_startup * section.seeds_per_config:
            return _suggest_by_tpe(sweep, configuration)
    return values


def sample_values(section: SweepSection, configuration: int) -> dict[str, Value]:
    """Sample each field independently, keyed by the sweep's seed and the configuration."""
    rng = random.Random(seed_of("sweep", section.seed, configuration))
    return {name: draw(distribution, rng) for name, distribution in section.space.items()}


def _is_judged(trial: Trial) -> bool:
    """Whether tpe can learn from a trial: it is over, or paused at a rung."""
    return trial.is_over or trial.status == "paused"


def _suggest_by_tpe(sweep: Sweep, configuration: int) -> dict[str, Value]:
    """Suggest values with Optuna's TPE (Bergstra et al. 2011), from a study built for this call.

    Running trials count as bad (constant liar), so that concurrent trials do not try the same; so
    do trials that ended without a finite metric.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    section = sweep.section
    space = {name: _to_optuna_space(given) for name, given in section.space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            multivariate=True,
            constant_liar=True,
            seed=seed_of("tpe", section.seed, configuration) % 2**32,
        )
    minimize, maximize = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    directions = [minimize if mode == "min" else maximize for mode in section.modes]
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials(_to_optuna_trials(sweep, space))
    params = study.ask(space).params
    return {name: _from_optuna(given, params[name]) for name, given in section.space.items()}


def _to_optuna_trials(
    sweep: Sweep, space: Mapping[str, "optuna.distributions.BaseDistribution"]
) -> list["optuna.trial.FrozenTrial"]:
    """Convert each configuration to one trial of Optuna, in order."""
    from optuna.trial import create_trial

    converted = []
    for trials in sweep.by_configuration().values():
        values = trials[0].segments[0].values
        params = {n: _to_optuna(given, values[n]) for n, given in sweep.section.space.items()}
        outcome = _to_optuna_outcome(sweep, trials)
        converted.append(create_trial(params=params, distributions=dict(space), **outcome))
    return converted


def _to_optuna_outcome(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """Convert the results of a configuration's trials to a state and values of Optuna."""
    from optuna.trial import TrialState

    # Not FAIL: Optuna ignores failed trials, and would suggest such values again.
    bad = {"state": TrialState.RUNNING}
    if len(trials) < sweep.section.seeds_per_config or not all(map(_is_judged, trials)):
        return bad
    results = [trial.results[-1] for trial in trials if trial.results]
    is_broken = any(trial.status in ("diverged", "failed") for trial in trials)
    is_finite = all(math.isfinite(value) for result in results for value in result.values)
    if is_broken or not results or not is_finite:
        return bad
    columns = zip(*(result.values for result in results), strict=True)
    means = [sum(column) / len(results) for column in columns]
    if any(trial.status in ("stopped", "paused") for trial in trials) and len(means) == 1:
        seen = min(result.images_seen for result in results)
        return {"state": TrialState.PRUNED, "intermediate_values": {seen: means[0]}}
    return {"state": TrialState.COMPLETE, "values": means}


def _to_optuna_space(given: Distribution) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match given.kind:
        case "uniform" | "loguniform":
            low, high = _floats(given)
            return FloatDistribution(low, high, log=given.kind == "loguniform")
        case "quniform":
            return IntDistribution(0, num_steps(_floats(given)))
        case "randint":
            low, high = _floats(given)
            return IntDistribution(int(low), int(high))
        case _:
            return CategoricalDistribution(given.args)


def _to_optuna(given: Distribution, value: Value) -> Value:
    """Convert a quniform value to its number of steps.

    As a float, Optuna would reject 0.1 + 2 * 0.1, which is more than 0.3.
    """
    if given.kind != "quniform" or isinstance(value, str | None):
        return value
    low, _, step = _floats(given)
    return round((value - low) / step)


def _from_optuna(given: Distribution, value: Value) -> Value:
    if given.kind == "quniform":
        assert isinstance(value, int)
        return value_at_step(_floats(given), value)
    return clip(given, value)


def _floats(given: Distribution) -> list[float]:
    return [float(value) for value in given.args if value is not None]
