"""Sweeps in job files: which are refused, and how; what a plan tells of the others."""

import json
import os

import pytest

from orchestrator.diagnostics.plan import make_plan
from orchestrator.errors import JobFileError
from services.fixtures_jobs import Load
from support.sweep_jobs import SPACE, VALID, edited

KINDS = "uniform, loguniform, quniform, randint, choice, grid"
BEGAN = (
    "discriminator/real, discriminator/fake, generator/fake, m_global, real, gamma_real, fake, "
    "k_t, learning_rate_factor, stalled, and validation/... where data.validation is given"
)


def searched(line: str) -> str:
    """The valid job with another first line in its space."""
    return edited(SPACE, f"    {line}\n")


MISTAKES = {
    "a field that the model does not have": (
        searched("model.gama: {uniform: [0.3, 0.9]}"),
        "20:5: sweep.space.model.gama: with 0.3, model.gama: unknown key; did you mean gamma?",
    ),
    "a range beyond the field's": (
        searched("model.gamma: {uniform: [0.3, 1.5]}"),
        "20:5: sweep.space.model.gamma: with 1.5, model.gamma: 1.5 must be above 0 and at most 1: "
        "it is L(G(z)) / L(x) at equilibrium; use 0.3 for sharper images, 0.7 for more varied ones",
    ),
    "a choice that the field does not take": (
        searched("model.filters: {choice: [8, many]}"),
        "20:5: sweep.space.model.filters: with \"many\", model.filters: 'many' is a string; "
        "expected a whole number; write one, such as 16",
    ),
    "any number for a field that takes whole ones": (
        searched("model.filters: {uniform: [8, 16]}"),
        "20:5: sweep.space.model.filters: with 10.943035529371539, model.filters: "
        "10.943035529371539 is a number with decimals; expected a whole number; use 10 or 11",
    ),
    "half steps for a field that takes whole numbers": (
        searched("model.filters: {quniform: [8, 16, 0.5]}"),
        "20:5: sweep.space.model.filters: with 8.5, model.filters: 8.5 is a number with decimals; "
        "expected a whole number; use 8 or 9",
    ),
    "a batch that cannot be split": (
        edited(SPACE, "    train.batch_size: {choice: [16, 17]}\n")
        + "cluster: {workers: 2, cpus_per_worker: 1}\n",
        "20:5: sweep.space.train.batch_size: with 17, train.batch_size: 17 cannot be split over 2 "
        "workers (cluster.workers); use a multiple of 2",
    ),
    "where a training runs": (
        searched("cluster.workers: {choice: [1, 2]}"),
        "20:5: sweep.space.cluster.workers: cannot be searched; fields of model, data, train, "
        "guard can",
    ),
    "a field without its section": (
        searched("gamma: {uniform: [0.3, 0.9]}"),
        "20:5: sweep.space.gamma: cannot be searched; fields of model, data, train, guard can",
    ),
    "a sweep of sweeps": (
        searched("sweep.trials: {choice: [1, 2]}"),
        "20:5: sweep.space.sweep.trials: cannot be searched; fields of model, data, train, "
        "guard can",
    ),
    "a path with an empty part": (
        searched("model..gamma: {choice: [0.4, 0.5]}"),
        "20:5: sweep.space.model..gamma: is no field; write its sections with dots, such as "
        "model.gamma",
    ),
    "a path with a value in it": (
        searched("'model.gamma=0.4 #': {choice: [0.4, 0.5]}"),
        "20:5: sweep.space.model.gamma=0.4 #: is no field; write its sections with dots, such as "
        "model.gamma",
    ),
    "a section": (
        searched("model: {choice: [1]}"),
        "20:5: sweep.space.model: with 1, model: 1 is a whole number; expected a section; indent "
        "its keys below it: name, image_size, channels ...",
    ),
    "a metric that nobody measures": (
        edited("metric: m_global ", "metric: m_globl "),
        "17:3: sweep.metric: the model began has no metric m_globl; did you mean m_global? it has: "
        + BEGAN,
    ),
    "a metric like no other": (
        edited("metric: m_global ", "metric: zzz "),
        f"17:3: sweep.metric: the model began has no metric zzz; it has: {BEGAN}",
    ),
    "a validation without a set": (
        edited("  validation: faces/validation\n", "").replace("m_global ", "validation/l1 "),
        "16:3: sweep.metric: validation/l1 needs a set to validate on; give data.validation",
    ),
    "no metric": (
        edited("metric: m_global ", "metric: [] "),
        "17:3: sweep.metric: has 0 names; give one metric, or two different ones",
    ),
    "three metrics": (
        edited("metric: m_global ", "metric: [m_global, k_t, real] "),
        "17:3: sweep.metric: has 3 names; give one metric, or two different ones",
    ),
    "the same metric twice": (
        edited("metric: m_global ", "metric: [m_global, m_global] "),
        "17:3: sweep.metric: has 2 names; give one metric, or two different ones",
    ),
    "more modes than metrics": (
        edited("  trials: 6", "  mode: [min, max]\n  trials: 6"),
        "18:3: sweep.mode: has 2 words for 1 metrics (sweep.metric)",
    ),
    "a grid without a grid": (
        edited("  trials: 6", "  searcher: grid"),
        "18:3: sweep.searcher: grid needs a field in sweep.space with {grid: [...]}; or use "
        "random or tpe",
    ),
    "no number of trials": (
        edited("  trials: 6\n", ""),
        "16:1: sweep: needs trials with the searcher random; such as 16",
    ),
    "a population of one": (
        edited("trials: 6", "trials: 1\n  scheduler: pbt"),
        "18:3: sweep.trials: 1 is no population; pbt needs 2 or more",
    ),
    "looks between points": (
        edited("  trials: 6", "  trials: 6\n  report_every: 1000").replace(
            "batch_size: 16", "batch_size: 16\n  log_every: 300"
        ),
        "20:3: sweep.report_every: 1000 must be a multiple of train.log_every, which is 300",
    ),
    "looks between validations": (
        edited("  trials: 6", "  trials: 6\n  report_every: 1000")
        .replace("batch_size: 16", "batch_size: 16\n  log_every: 300\n  validate_every: 600")
        .replace("m_global ", "validation/l1 "),
        "21:3: sweep.report_every: 1000 must be a multiple of train.validate_every, which is 600",
    ),
    "looks between points of one of two metrics": (
        edited("  trials: 6", "  trials: 6\n  report_every: 1200")
        .replace("batch_size: 16", "batch_size: 16\n  log_every: 500\n  validate_every: 600")
        .replace("m_global ", "[validation/l1, m_global] "),
        "21:3: sweep.report_every: 1200 must be a multiple of train.log_every, which is 500",
    ),
    "a range from high to low": (
        searched("model.gamma: {uniform: [0.9, 0.3]}"),
        "20:5: sweep.space.model.gamma: uniform: 0.9 must be below 0.3",
    ),
    "a logarithm of nothing": (
        searched("model.gamma: {loguniform: [0, 0.3]}"),
        "20:5: sweep.space.model.gamma: loguniform: 0 must be above 0",
    ),
    "a step wider than the range": (
        searched("model.gamma: {quniform: [0.2, 0.4, 0.3]}"),
        "20:5: sweep.space.model.gamma: quniform: the step 0.3 must be in (0, 0.2]",
    ),
    "a choice that is there twice": (
        searched("model.gamma: {choice: [0.5, 0.5]}"),
        "20:5: sweep.space.model.gamma: choice: a value is there twice",
    ),
    "two distributions": (
        searched("model.gamma: {uniform: [0.3, 0.9], choice: [1]}"),
        f"20:5: sweep.space.model.gamma: must have exactly one of {KINDS}; it has uniform and "
        "choice",
    ),
    "no distribution": (
        searched("model.gamma: {}"),
        f"20:5: sweep.space.model.gamma: must have exactly one of {KINDS}; it has nothing",
    ),
    "a misspelt distribution": (
        searched("model.gamma: {unifrom: [0.3, 0.9]}"),
        "20:19: sweep.space.model.gamma.unifrom: unknown key; did you mean uniform?",
    ),
    "a value for a distribution": (
        searched("model.gamma: 0.5"),
        "20:5: sweep.space.model.gamma: 0.5 is a number with decimals; expected a section; indent "
        "its keys below it: uniform, loguniform, quniform, randint ...",
    ),
    "a word for an end": (
        searched("model.gamma: {uniform: [0.3, high]}"),
        "20:34: sweep.space.model.gamma.uniform.1: 'high' is a string; expected a number; write "
        "one, such as 0.5",
    ),
    "a fraction for a whole number": (
        searched("model.filters: {randint: [0.5, 3]}"),
        "20:31: sweep.space.model.filters.randint.0: 0.5 is a number with decimals; expected a "
        "whole number; use 0 or 1",
    ),
    "a space that is no mapping": (
        edited(VALID[VALID.index("  space:") :], "  space: 5\n"),
        "19:3: sweep.space: 5 is a whole number; expected a section; indent its keys below it",
    ),
    "no space": (
        edited(VALID[VALID.index("  space:") :], ""),
        "16:1: sweep.space: is missing; add a section `space:` under `sweep:` with its keys",
    ),
    "a misspelt scheduler": (
        edited("  trials: 6", "  trials: 6\n  scheduler: ahsa"),
        "19:3: sweep.scheduler: 'ahsa' is not a choice; expected fifo, asha, hyperband, median or "
        "pbt; use asha",
    ),
    "a misspelt key": (
        edited("  trials: 6", "  trials: 6\n  schedular: asha"),
        "19:3: sweep.schedular: unknown key; did you mean scheduler?",
    ),
    "half of the trainings and more": (
        edited("  trials: 6", "  trials: 6\n  quantile: 0.6"),
        "19:3: sweep.quantile: 0.6 is out of range; use a number above 0 and of at most 0.5",
    ),
    "no trial": (
        edited("trials: 6", "trials: 0"),
        "18:3: sweep.trials: 0 is out of range; use a whole number above 0",
    ),
}
for name in ("asha", "hyperband", "median", "pbt"):
    MISTAKES[f"two metrics with {name}"] = (
        edited("metric: m_global ", "metric: [m_global, validation/l1] ").replace(
            "  trials: 6", f"  trials: 6\n  scheduler: {name}"
        ),
        f"19:3: sweep.scheduler: {name} compares by one metric, and sweep.metric has two; use fifo",
    )
for name in ("hyperband", "pbt"):
    MISTAKES[f"repeats with {name}"] = (
        edited("  trials: 6", f"  trials: 6\n  scheduler: {name}\n  seeds_per_config: 3"),
        f"20:3: sweep.seeds_per_config: 3 is not possible with the scheduler {name}; use 1",
    )
for name in ("train.images", "train.epochs", "train.seed", "model.name", "data.train"):
    MISTAKES[f"a search over {name}"] = (
        searched(f"{name}: {{choice: [1, 2]}}"),
        f"20:5: sweep.space.{name}: cannot be searched: trainings that differ in it cannot be "
        "compared",
    )


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_with_its_place_and_the_remedy(load: Load, what: str) -> None:
    text, expected = MISTAKES[what]
    with pytest.raises(JobFileError) as caught:
        load(text)
    assert str(caught.value) == f"x.yaml:{expected}"
    assert caught.value.exit_code == 2


def test_mistakes_of_several_fields_come_together_in_the_order_of_the_file(load: Load) -> None:
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


def test_a_mistake_of_a_set_option_names_the_option(load: Load) -> None:
    with pytest.raises(JobFileError) as caught:
        load(VALID, "sweep.metric=m_globl")
    assert str(caught.value).startswith(
        "--set sweep.metric=m_globl: sweep.metric: the model began has no metric m_globl; "
        "did you mean m_global?"
    )


def test_steps_that_are_never_drawn_are_not_held_against_a_job(load: Load) -> None:
    """Up to 33 in steps of 8 above 8 is up to 32, which 8 workers can share."""
    text = searched("train.batch_size: {quniform: [8, 33, 8]}")
    assert load(text, "cluster.workers=8").job.sweep is not None
    with pytest.raises(JobFileError, match=r"with 32, .*: 32 cannot be split over 6 workers"):
        load(
            text.replace("[8", "[6").replace(", 8]", ", 26]"),
            "cluster.workers=6",
            "train.batch_size=6",
        )


def test_a_plan_tells_of_the_sweep(load: Load) -> None:
    loaded = load(
        edited(
            "trials: 6", "trials: 6\n  seeds_per_config: 3\n  scheduler: asha\n  max_hours: 2\n"
        ).replace("  max_hours: 2\n\n", "  max_hours: 2\n"),
        "sweep.max_concurrent=1",
    )
    made = make_plan(loaded)
    assert made.sweep is not None
    assert (made.sweep.trainings, made.sweep.configurations, made.sweep.seeds_per_config) == (
        18,
        6,
        3,
    )
    assert (made.sweep.at_once, made.sweep.cpus, made.sweep.gpus) == (1, 1, 0)
    assert made.sweep.most_images == 18 * 8000
    rows = dict(made.sweep.rows())
    assert rows == {
        "sweep": "random search for m_global (min), scheduler asha",
        "  model.gamma": "uniform [0.3, 0.9]",
        "  model.learning_rate": "loguniform [2e-05, 0.001]",
        "trainings": "18 of 6 configurations; at most 144,000 images in all, fewer where some are "
        "ended early",
        "at a time": "as many as the cluster has room for: 1 on this machine",
        "cost": "at most 2 CPU-hours here: 2 h on 1 CPUs",
    }
    for name, told in rows.items():
        assert any(
            line.startswith(name) and line.endswith(told) for line in made.render().splitlines()
        )
    assert json.loads(made.json())["sweep"]["most_images"] == 144_000


def test_a_plan_without_data_or_room_says_so(load: Load) -> None:
    cpus = (os.cpu_count() or 1) + 1
    loaded = load(edited("  images: 8000", "  epochs: 3"), f"cluster.cpus_per_worker={cpus}")
    made = make_plan(loaded)
    assert made.sweep is not None
    rows = dict(made.sweep.rows())
    assert rows["trainings"] == "6; at most unknown until fetched images in all"
    assert rows["at a time"].endswith("none on this machine")
    assert rows["cost"] == "no bound in hours; sweep.max_hours sets one"
    assert make_plan(load(VALID, "sweep=null")).sweep is None
