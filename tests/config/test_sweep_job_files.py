"""Sweeps in job files: the errors of invalid ones, and the plans of valid ones."""

import json
import os

import pytest

from orchestrator.diagnostics.plan import make_plan
from orchestrator.errors import JobFileError
from services.fixtures_jobs import Load
from support.sweep_jobs import SPACE, VALID, VALIDATING, edited

KINDS = "uniform, loguniform, quniform, randint, choice, grid"
BEGAN = (
    "discriminator/real, discriminator/fake, generator/fake, began/m_global, began/real, "
    "began/gamma_real, began/fake, began/k_t, began/learning_rate_factor, began/stalled, "
    "discriminator/loss, discriminator/grad_norm, generator/loss, generator/grad_norm, "
    "samples/diversity, samples/collapsed"
)


GRIDS = "".join(
    f"    {name}: {{grid: {list(range(2, 13))}}}\n"
    for name in (
        "train.max_grad_norm",
        "train.sample_every",
        "train.checkpoint_every",
        "guard.max_rollbacks",
        "guard.max_consecutive_skips",
        "data.threads",
    )
)
"""Six grids of eleven values."""


def with_space(line: str) -> str:
    """Return the valid job with another first line in its search space."""
    return edited(SPACE, f"    {line}\n")


MISTAKES = {
    "a field that the model does not have": (
        with_space("model.gama: {uniform: [0.3, 0.9]}"),
        "20:5: sweep.space.model.gama: with 0.3, model.gama: unknown key; did you mean gamma?",
    ),
    "a range beyond the field's": (
        with_space("model.gamma: {uniform: [0.3, 1.5]}"),
        "20:5: sweep.space.model.gamma: with 1.5, model.gamma: 1.5 must be above 0 and at most "
        "1: it is L(G(z)) / L(x) at equilibrium; use 0.3 for sharper images, 0.7 for more diverse "
        "ones",
    ),
    "a choice that the field does not take": (
        with_space("model.filters: {choice: [8, many]}"),
        "20:5: sweep.space.model.filters: with \"many\", model.filters: 'many' is a string; "
        "expected an integer; write one, such as 16",
    ),
    "a choice that is no value": (
        with_space("model.filters: {choice: [8, {at: 16}]}"),
        "20:33: sweep.space.model.filters.choice.1: is a mapping; expected a number, a string, "
        "true or false; write a number, a string, true or false",
    ),
    "a choice out of all bounds": (
        with_space("model.filters: {choice: [8, 1.0e+20]}"),
        "20:33: sweep.space.model.filters.choice.1: 1e+20 is out of range; use a number of at "
        "least -1e+15 and at most 1e+15",
    ),
    "a grid of far too many combinations": (
        edited("  trials: 6\n", "  searcher: grid\n", edited(SPACE, GRIDS)),
        "16:1: sweep: has a grid of 1,771,561 combinations; set `trials`, at most 1,000,000",
    ),
    "floats for a field of integers": (
        with_space("model.filters: {uniform: [8, 16]}"),
        "20:5: sweep.space.model.filters: with 10.943035529371539, model.filters: "
        "10.943035529371539 is a float; expected an integer; use 10 or 11",
    ),
    "half steps for a field of integers": (
        with_space("model.filters: {quniform: [8, 16, 0.5]}"),
        "20:5: sweep.space.model.filters: with 8.5, model.filters: 8.5 is a float; "
        "expected an integer; use 8 or 9",
    ),
    "a batch that cannot be split": (
        edited(SPACE, "    train.batch_size: {choice: [16, 17]}\n")
        + "cluster: {workers: 2, cpus_per_worker: 1}\n",
        "20:5: sweep.space.train.batch_size: with 17, train.batch_size: 17 cannot be split over 2 "
        "workers (cluster.workers); use a multiple of 2",
    ),
    "a field of the cluster section": (
        with_space("cluster.workers: {choice: [1, 2]}"),
        "20:5: sweep.space.cluster.workers: is not searchable; only fields of model, data, "
        "train, guard are",
    ),
    "a field without its section": (
        with_space("gamma: {uniform: [0.3, 0.9]}"),
        "20:5: sweep.space.gamma: is not searchable; only fields of model, data, train, guard are",
    ),
    "a sweep of sweeps": (
        with_space("sweep.trials: {choice: [1, 2]}"),
        "20:5: sweep.space.sweep.trials: is not searchable; only fields of model, data, "
        "train, guard are",
    ),
    "a path with an empty part": (
        with_space("model..gamma: {choice: [0.4, 0.5]}"),
        "20:5: sweep.space.model..gamma: is not a field; write its path with dots, such as "
        "model.gamma",
    ),
    "a path with a value in it": (
        with_space("'model.gamma=0.4 #': {choice: [0.4, 0.5]}"),
        "20:5: sweep.space.model.gamma=0.4 #: is not a field; write its path with dots, such as "
        "model.gamma",
    ),
    "a section": (
        with_space("model: {choice: [1]}"),
        "20:5: sweep.space.model: with 1, model: 1 is an integer; expected a mapping; indent "
        "its keys under it: name, image_size, channels ...",
    ),
    "a metric that the model does not have": (
        edited("metric: began/m_global ", "metric: began/m_globl "),
        "17:3: sweep.metric: the model began has no metric began/m_globl; did you mean "
        "began/m_global? it has: " + BEGAN,
    ),
    "an unknown metric without a similar one": (
        edited("metric: began/m_global ", "metric: zzz "),
        f"17:3: sweep.metric: the model began has no metric zzz; it has: {BEGAN}",
    ),
    "a validation metric without a validation set": (
        edited("  validation: faces/validation\n", "", VALIDATING),
        "16:3: sweep.metric: validation/l1 needs a validation set; set data.validation",
    ),
    "no metric": (
        edited("metric: began/m_global ", "metric: [] "),
        "17:3: sweep.metric: has 0 metrics; give one, or two different ones",
    ),
    "three metrics": (
        edited("metric: began/m_global ", "metric: [began/m_global, began/k_t, began/real] "),
        "17:3: sweep.metric: has 3 metrics; give one, or two different ones",
    ),
    "the same metric twice": (
        edited("metric: began/m_global ", "metric: [began/m_global, began/m_global] "),
        "17:3: sweep.metric: has 2 metrics; give one, or two different ones",
    ),
    "more modes than metrics": (
        edited("  trials: 6", "  mode: [min, max]\n  trials: 6"),
        "18:3: sweep.mode: has 2 modes for 1 metrics (sweep.metric)",
    ),
    "a grid without a grid": (
        edited("  trials: 6", "  searcher: grid"),
        "18:3: sweep.searcher: grid needs a field in sweep.space with {grid: [...]}; or use "
        "random or tpe",
    ),
    "no number of trials": (
        edited("  trials: 6\n", ""),
        "16:1: sweep: the searcher random needs `trials`, such as 16",
    ),
    "a population of one": (
        edited("trials: 6", "trials: 1\n  scheduler: pbt"),
        "18:3: sweep.trials: 1 is not a population; pbt needs 2 or more",
    ),
    "intermediate results between points": (
        edited("  trials: 6", "  trials: 6\n  report_every: 1000").replace(
            "batch_size: 16", "batch_size: 16\n  log_every: 300"
        ),
        "20:3: sweep.report_every: 1000 must be a multiple of train.log_every, which is 300",
    ),
    "intermediate results between validations": (
        edited("  trials: 6", "  trials: 6\n  report_every: 1000", VALIDATING).replace(
            "batch_size: 16", "batch_size: 16\n  log_every: 300\n  validate_every: 600"
        ),
        "21:3: sweep.report_every: 1000 must be a multiple of train.validate_every, which is 600",
    ),
    "intermediate results between points of one of two metrics": (
        edited("  trials: 6", "  trials: 6\n  report_every: 1200", VALIDATING)
        .replace("batch_size: 16", "batch_size: 16\n  log_every: 500\n  validate_every: 600")
        .replace("metric: validation/l1 ", "metric: [validation/l1, autoencoder/mse] "),
        "21:3: sweep.report_every: 1200 must be a multiple of train.log_every, which is 500",
    ),
    "a range from high to low": (
        with_space("model.gamma: {uniform: [0.9, 0.3]}"),
        "20:5: sweep.space.model.gamma: uniform: 0.9 must be less than 0.3",
    ),
    "a loguniform range from 0": (
        with_space("model.gamma: {loguniform: [0, 0.3]}"),
        "20:5: sweep.space.model.gamma: loguniform: 0 must be above 0",
    ),
    "a step wider than the range": (
        with_space("model.gamma: {quniform: [0.2, 0.4, 0.3]}"),
        "20:5: sweep.space.model.gamma: quniform: the step 0.3 must be in (0, 0.2]",
    ),
    "a duplicate choice": (
        with_space("model.gamma: {choice: [0.5, 0.5]}"),
        "20:5: sweep.space.model.gamma: choice: contains a value twice",
    ),
    "two distributions": (
        with_space("model.gamma: {uniform: [0.3, 0.9], choice: [1]}"),
        f"20:5: sweep.space.model.gamma: must have exactly one of {KINDS}; it has uniform and "
        "choice",
    ),
    "no distribution": (
        with_space("model.gamma: {}"),
        f"20:5: sweep.space.model.gamma: must have exactly one of {KINDS}; it has none",
    ),
    "a misspelt distribution": (
        with_space("model.gamma: {unifrom: [0.3, 0.9]}"),
        "20:19: sweep.space.model.gamma.unifrom: unknown key; did you mean uniform?",
    ),
    "a value for a distribution": (
        with_space("model.gamma: 0.5"),
        "20:5: sweep.space.model.gamma: 0.5 is a float; expected a mapping; indent "
        "its keys under it: uniform, loguniform, quniform, randint ...",
    ),
    "a string as a bound": (
        with_space("model.gamma: {uniform: [0.3, high]}"),
        "20:34: sweep.space.model.gamma.uniform.1: 'high' is a string; expected a number; write "
        "one, such as 0.5",
    ),
    "a fraction for an integer": (
        with_space("model.filters: {randint: [0.5, 3]}"),
        "20:31: sweep.space.model.filters.randint.0: 0.5 is a float; expected "
        "an integer; use 0 or 1",
    ),
    "a space that is not a mapping": (
        edited(VALID[VALID.index("  space:") :], "  space: 5\n"),
        "19:3: sweep.space: 5 is an integer; expected a mapping; indent its keys under it",
    ),
    "no space": (
        edited(VALID[VALID.index("  space:") :], ""),
        "16:1: sweep.space: is missing; add a section `space:` under `sweep:`",
    ),
    "a misspelt scheduler": (
        edited("  trials: 6", "  trials: 6\n  scheduler: ahsa"),
        "19:3: sweep.scheduler: 'ahsa' is not a valid choice; expected fifo, asha, hyperband, "
        "median or pbt; use asha",
    ),
    "a misspelt key": (
        edited("  trials: 6", "  trials: 6\n  schedular: asha"),
        "19:3: sweep.schedular: unknown key; did you mean scheduler?",
    ),
    "a quantile above one half": (
        edited("  trials: 6", "  trials: 6\n  quantile: 0.6"),
        "19:3: sweep.quantile: 0.6 is out of range; use a number above 0 and at most 0.5",
    ),
    "no trial": (
        edited("trials: 6", "trials: 0"),
        "18:3: sweep.trials: 0 is out of range; use an integer above 0 and at most 1,000,000",
    ),
}
for name in ("asha", "hyperband", "median", "pbt"):
    MISTAKES[f"two metrics with {name}"] = (
        edited("metric: began/m_global ", "metric: [began/m_global, began/k_t] ").replace(
            "  trials: 6", f"  trials: 6\n  scheduler: {name}"
        ),
        f"19:3: sweep.scheduler: {name} supports one metric, and sweep.metric has two; use fifo",
    )
for name in ("hyperband", "pbt"):
    MISTAKES[f"several seeds with {name}"] = (
        edited("  trials: 6", f"  trials: 6\n  scheduler: {name}\n  seeds_per_config: 3"),
        f"20:3: sweep.seeds_per_config: 3 is not supported by the scheduler {name}; use 1",
    )
for name in ("train.images", "train.epochs", "train.seed", "model.name", "data.train"):
    MISTAKES[f"a search over {name}"] = (
        with_space(f"{name}: {{choice: [1, 2]}}"),
        f"20:5: sweep.space.{name}: is not searchable: trials that differ in it cannot be compared",
    )


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_with_position_path_and_fix(load: Load, what: str) -> None:
    text, expected = MISTAKES[what]
    with pytest.raises(JobFileError) as caught:
        load(text)
    assert str(caught.value) == f"x.yaml:{expected}"
    assert caught.value.exit_code == 2


def test_all_mistakes_are_reported_in_the_order_of_the_file(load: Load) -> None:
    text = edited(SPACE, "    model.gamma: {choice: [0.5, 7, x]}\n    model.filters: {grid: [a]}\n")
    with pytest.raises(JobFileError) as caught:
        load(edited("  trials: 6\n", "", text))
    places = [line.split(": ")[:3] for line in str(caught.value).splitlines()]
    assert [(place[0], place[1]) for place in places] == [
        ("x.yaml:16:1", "sweep"),
        ("x.yaml:19:5", "sweep.space.model.gamma"),
        ("x.yaml:19:5", "sweep.space.model.gamma"),
        ("x.yaml:20:5", "sweep.space.model.filters"),
    ]


def test_a_mistake_in_an_override_names_the_override(load: Load) -> None:
    with pytest.raises(JobFileError) as caught:
        load(VALID, "sweep.metric=began/m_globl")
    assert str(caught.value).startswith(
        "--set sweep.metric=began/m_globl: sweep.metric: the model began has no metric "
        "began/m_globl; "
        "did you mean began/m_global?"
    )


def test_a_job_need_not_be_valid_for_steps_that_are_never_drawn(load: Load) -> None:
    """Up to 33 in steps of 8 above 8 is up to 32, which 8 workers can share."""
    text = with_space("train.batch_size: {quniform: [8, 33, 8]}")
    assert load(text, "cluster.workers=8").job.sweep is not None
    with pytest.raises(JobFileError, match=r"with 32, .*: 32 cannot be split over 6 workers"):
        load(
            text.replace("[8", "[6").replace(", 8]", ", 26]"),
            "cluster.workers=6",
            "train.batch_size=6",
        )


def test_a_plan_describes_the_sweep(load: Load) -> None:
    loaded = load(
        edited(
            "trials: 6", "trials: 6\n  seeds_per_config: 3\n  scheduler: asha\n  max_hours: 2\n"
        ).replace("  max_hours: 2\n\n", "  max_hours: 2\n"),
        "sweep.max_concurrent=1",
    )
    made = make_plan(loaded)
    assert made.sweep is not None
    plan = made.sweep
    assert (plan.num_trials, plan.num_configurations, plan.seeds_per_config) == (18, 6, 3)
    assert (plan.num_concurrent, plan.cpus, plan.gpus) == (1, 1, 0)
    assert plan.max_images == 18 * 8000
    rows = dict(plan.rows())
    assert rows == {
        "sweep": "searcher random, scheduler asha, metric began/m_global (min)",
        "  model.gamma": "uniform [0.3, 0.9]",
        "  model.learning_rate": "loguniform [2e-05, 0.001]",
        "trials": "18 of 6 configurations; at most 144,000 images in all, fewer if some trials "
        "stop early",
        "concurrent trials": "as many as the cluster has room for: 1 on this machine",
        "cost": "at most 2 CPU-hours here: 2 h on 1 CPUs",
    }
    lines = made.render().splitlines()
    for name, text in rows.items():
        assert any(line.startswith(name) and line.endswith(text) for line in lines)
    assert json.loads(made.json())["sweep"]["max_images"] == 144_000


def test_a_plan_reports_missing_data_and_missing_resources(load: Load) -> None:
    cpus = (os.cpu_count() or 1) + 1
    loaded = load(edited("  images: 8000", "  epochs: 3"), f"cluster.cpus_per_worker={cpus}")
    made = make_plan(loaded)
    assert made.sweep is not None
    rows = dict(made.sweep.rows())
    assert rows["trials"] == "6; at most unknown until fetched images in all"
    assert rows["concurrent trials"].endswith("none here")
    assert rows["cost"] == "no limit in hours; sweep.max_hours sets one"
    assert make_plan(load(VALID, "sweep=null")).sweep is None
