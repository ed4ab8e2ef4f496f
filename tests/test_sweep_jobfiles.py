"""Sweeps in job files: which are refused, and how; what is stored; what the commands print."""

import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.errors import JobFileError, UsageError
from orchestrator.jobfile import LoadedJob, load_job, load_text
from orchestrator.jobfile.flat import flat
from orchestrator.jobfile.rewriting import rewritten
from orchestrator.plan import make_plan
from orchestrator.redaction import mask
from orchestrator.runs import driver_key, driving
from orchestrator.storage import Storage, WrappedStorage, open_storage
from orchestrator.sweeps.jobs import report_every, task_of, trial_job
from orchestrator.sweeps.records import Leg, Look, Status, Sweep, Trial, pareto_front, standings
from orchestrator.sweeps.searchers import propose
from orchestrator.sweeps.section import SweepSection, Value
from orchestrator.sweeps.settings import settings
from orchestrator.sweeps.store import SweepRecord, SweepStore, sweep_at, sweeps

JOBS = Path(__file__).parent.parent / "jobs"
VALID = """\
#!/usr/bin/env -S orchestrator run
# A search for BEGAN's balance.
name: balance
model:
  name: began
  image_size: 32
  filters: 8
  latent: 16          # small
  gamma: 0.5          # the paper's
data:
  train: faces/train
  validation: faces/validation
train:
  images: 8000
  batch_size: 16
sweep:
  metric: m_global    # the paper's measure
  trials: 6
  space:
    model.gamma: {uniform: [0.3, 0.9]}
    model.learning_rate: {loguniform: [2.0e-5, 1.0e-3]}
"""
SPACE = "    model.gamma: {uniform: [0.3, 0.9]}\n"
KINDS = "uniform, loguniform, quniform, randint, choice, grid"
BEGAN = (
    "discriminator/real, discriminator/fake, generator/fake, m_global, real, gamma_real, fake, "
    "k_t, learning_rate_factor, stalled, and validation/... where data.validation is given"
)

Load = Callable[..., LoadedJob]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a job from its text, as the file x.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("ORCHESTRATOR_STORAGE", "ORCHESTRATOR_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def from_text(text: str = VALID, *overrides: str) -> LoadedJob:
        Path("x.yaml").write_text(text)
        return load_job("x.yaml", overrides)

    return from_text


def edited(old: str, new: str, text: str = VALID) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def searched(line: str) -> str:
    """The valid job with another first line in its space."""
    return edited(SPACE, f"    {line}\n")


# mistakes

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
        edited("  trials: 6", f"  trials: 6\n  scheduler: {name}\n  repeats: 3"),
        f"20:3: sweep.repeats: 3 is not possible with the scheduler {name}; use 1",
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


@pytest.mark.parametrize("name", ["began_sweep", "pix2pix_sweep"])
def test_the_jobs_of_the_repository_load_and_their_trainings_do(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_job(JOBS / f"{name}.yaml")
    assert loaded.job.sweep is not None
    total = loaded.job.train.total_images(4000)
    record = record_of(loaded, total=total)
    for number in range(5):
        check_trial(loaded, record, number)


# the jobs of trainings


def record_of(loaded: LoadedJob, *, name: str = "balance-1", total: int = 8000) -> SweepRecord:
    """As a driver writes it."""
    section = loaded.job.sweep
    assert section is not None
    return SweepRecord(
        name=name,
        job=loaded.job.name,
        file_name=str(loaded.path),
        text=mask(loaded.text),
        overrides=tuple(mask(text) for text in loaded.overrides),
        rendered=loaded.render(),
        section=section.model_dump(mode="json", exclude_none=True),
        data_digest="d1",
        total_images=total,
        report_every=report_every(loaded.job, total),
        tracking_uri=mask(loaded.job.tracking.uri),
        experiment_id="1",
        mlflow_run_id="parent",
    )


def proposed(loaded: LoadedJob, number: int) -> Trial:
    section = loaded.job.sweep
    assert section is not None
    configuration, repeat = divmod(number, section.repeats)
    values = propose(Sweep("s", "j", section, 1, ()), configuration)
    return Trial(number, configuration, repeat, [Leg(f"sweeps/s/t{number:03d}", values)])


def at(job: Any, path: str) -> Any:
    value: Any = job.model_dump(mode="json", by_alias=True)
    for key in path.split("."):
        value = value[key]
    return value


def check_trial(loaded: LoadedJob, record: SweepRecord, number: int) -> LoadedJob:
    """Against the sweep's own job: nothing else differs than what is to differ."""
    trial = proposed(loaded, number)
    own = trial_job(loaded, record, trial)
    job, train = own.job, own.job.train
    assert job.sweep is None
    assert job.register_as is None
    assert train.seed == loaded.job.train.seed + trial.repeat
    for path, value in trial.values.items():
        assert at(job, path) == value
    free = {*trial.values, "train.seed", "sweep", "register"}
    free |= {f"train.{kind}_every" for kind in ("log", "checkpoint", "sample", "validate")}
    before, now = flat(loaded.render()), flat(own.render())
    changed = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    assert {c for c in changed if not c.startswith(("sweep", "register"))} <= free
    every = record.report_every
    assert train.log_every is not None
    assert every % train.log_every == 0
    if loaded.job.train.log_every is None:
        assert train.log_every >= min(every, train.batch_size)
    if loaded.job.train.checkpoint_every is None:
        assert train.checkpoint_every == every
    if loaded.job.train.sample_every is None:
        assert train.sample_every is not None
        assert train.sample_every % every == 0
    assert (train.validate_every is None) == (job.data.validation is None)
    return own


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_a_trainings_job_has_its_values_its_seed_and_no_sweep(load: Load, searcher: str) -> None:
    text = edited(SPACE, SPACE + "    model.filters: {quniform: [8, 32, 8]}\n")
    text = edited("  trials: 6", f"  trials: 6\n  repeats: 3\n  searcher: {searcher}", text)
    loaded = load(text, "train.seed=40", "register={name: x}")
    record = record_of(loaded)
    seeds = [check_trial(loaded, record, number).job.train.seed for number in range(9)]
    assert seeds == [40, 41, 42] * 3


def test_intervals_that_are_given_stay_and_looks_come_at_their_points(load: Load) -> None:
    own = ("train.log_every=48", "train.checkpoint_every=800", "train.sample_every=1600")
    loaded = load(VALID, *own)
    record = record_of(loaded)
    # A twentieth of 8000 is 400; 432 is the next multiple of 48.
    assert record.report_every == 432
    train = trial_job(loaded, record, proposed(loaded, 0)).job.train
    assert (train.log_every, train.checkpoint_every, train.sample_every) == (48, 800, 1600)
    both = load(
        edited("metric: m_global ", "metric: [m_global, validation/l1] "),
        "train.log_every=300",
        "train.validate_every=200",
    )
    assert report_every(both.job, 8000) == 600
    assert report_every(load().job, 8000) == 400
    assert report_every(load().job, 160) == 16
    assert report_every(load(VALID, "sweep.report_every=1000").job, 8000) == 1000
    assert report_every(load(VALID, "sweep.report_every=9000").job, 8000) == 8000


@pytest.mark.parametrize("every", [1, 7, 16, 17, 400, 997, 8000])
def test_points_divide_the_looks_whatever_their_interval(load: Load, every: int) -> None:
    """Also where it is less than a batch, or a prime."""
    loaded = load(VALID, f"sweep.report_every={every}")
    check_trial(loaded, record_of(loaded), 0)


def test_a_task_is_what_its_process_needs(load: Load) -> None:
    loaded = load(VALID, "sweep.repeats=2", "storage=/store")
    record, trial = record_of(loaded), proposed(loaded, 3)
    trial.looks = [Look(800, (1.0,), 0)]
    task = task_of(trial, record, loaded, loaded.job)
    assert (task.number, task.images_seen, task.total_images) == (3, 800, 8000)
    assert (task.metrics, task.report_every) == (("m_global",), 400)
    assert (task.job.storage, task.job.tracking.experiment) == ("/store", "balance")
    assert task.tags == {
        "mlflow.parentRunId": "parent",
        "sweep": "balance-1",
        "sweep.trial": "3",
        "sweep.configuration": "1",
    }


# the storage


SECRETS = {
    "DATA": "hidden-bucket-name",
    "TOKEN": "swordfish-token",
    "TRACK": "https://me:pass%20word@mlflow.example",
}
SECRET_JOB = (
    edited("faces/train", "${env:DATA}/train")
    .replace("faces/validation", "${env:DATA}/validation")
    .replace("train:\n  images", 'tracking: {uri: "${env:TRACK}"}\ntrain:\n  images')
)


def stored(storage: Storage, loaded: LoadedJob, **given: Any) -> SweepStore:
    record = record_of(loaded, **given)
    store = SweepStore(storage, record.name)
    store.announce(record)
    return store


def test_a_secret_of_the_environment_never_comes_into_the_storage(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    text = edited(
        "name: balance", "name: balance\nstorage: s3://key:plain-password@b/c", SECRET_JOB
    )
    loaded = load(text, "data.cache={folder: '${env:TOKEN}/cache', limit: 1GiB}")
    store = stored(open_storage(str(tmp_path / "store")), loaded)
    for number in range(3):
        trial = proposed(loaded, number)
        trial_job(loaded, store.record(), trial)
        store.save(trial)
    store.ask_to_stop()
    store.finish()
    written = {p: p.read_text() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert len(written) == 6
    for text in written.values():
        for secret in ("hidden-bucket", "swordfish", "pass%20word", "plain-password"):
            assert secret not in text
    record = store.record()
    assert "${env:DATA}/train" in record.text
    assert "${env:DATA}/train" in record.rendered
    assert record.overrides == ("data.cache={folder: '${env:TOKEN}/cache', limit: 1GiB}",)
    assert record.tracking_uri == "https://***@mlflow.example"


def test_a_sweep_is_read_as_it_was_written(load: Load, tmp_path: Path) -> None:
    loaded = load(VALID, "sweep.repeats=2", "sweep.scheduler=asha")
    store = stored(open_storage(str(tmp_path / "store")), loaded)
    trials = [proposed(loaded, number) for number in range(12)]
    trials[3].looks = [Look(400, (math.nan,), 0), Look(800, (0.25,), 1)]
    trials[4].legs.append(Leg("r", {"a": None, "b": True}, "store/x", 3, 800, "m"))
    for trial in random.Random(0).sample(trials, 12):
        store.save(trial)
    again = SweepStore(open_storage(str(tmp_path / "store")), "balance-1")
    assert again.record() == store.record()
    assert again.record().sweep == loaded.job.sweep
    sweep = again.sweep()
    assert repr(sweep.trials) == repr(trials)  # where NaN is the same as NaN
    assert (sweep.name, sweep.job, sweep.total_images) == ("balance-1", "balance", 8000)
    assert (sweep.num_trials, sweep.has_all_trials) == (12, True)
    assert "NaN" not in (tmp_path / "store/sweeps/balance-1/trials/0003.json").read_text()


def test_the_state_of_a_sweep_is_that_of_its_driver(load: Load, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    store = stored(storage, load())
    assert store.state() == "stopped", "nobody has driven it yet"
    with driving(storage, store.key) as driver:
        beat = json.loads(storage.get(driver_key(store.key)))
        driver.stopping()
        deadline = time.monotonic() + 10
        while json.loads(storage.get(driver_key(store.key)))["stopping"] is False:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.state() == "stopped", "it is no accident, whatever comes of it"
    assert store.state() == "stopped"
    dead = next(pid for pid in range(2**22, 2**23) if not Path(f"/proc/{pid}").exists())
    storage.put(driver_key(store.key), json.dumps({**beat, "pid": dead}).encode())
    assert store.state() == "lost"
    store.finish()
    assert store.state() == "finished"


def test_a_sweep_whose_driver_writes_runs(load: Load, tmp_path: Path) -> None:
    """Seen from another machine, where its process cannot be looked for."""

    class Beating(WrappedStorage):
        """A driver writes between any two reads."""

        beats = 0

        def get(self, key: str) -> bytes:
            self.beats += 1
            return json.dumps({**json.loads(super().get(key)), "beat": self.beats}).encode()

    storage = open_storage(str(tmp_path / "store"))
    store = stored(storage, load())
    beat = {"host": "another", "pid": 1, "id": "x", "beat": 1, "ended": False, "stopping": False}
    storage.put(driver_key(store.key), json.dumps(beat).encode())
    assert SweepStore(Beating(storage), store.name).state() == "running"


def test_a_wish_to_stop_is_there_until_it_is_taken_back(load: Load, tmp_path: Path) -> None:
    store = stored(open_storage(str(tmp_path / "store")), load())
    assert not store.asked_to_stop()
    store.forget_stop()
    store.ask_to_stop()
    store.ask_to_stop()
    assert store.asked_to_stop()
    store.forget_stop()
    assert not store.asked_to_stop()


def test_sweeps_are_found_by_name_and_by_place(load: Load, tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    storage, loaded = open_storage(place), load()
    with pytest.raises(UsageError, match=r"there is no sweep x in .*, and no other one either"):
        sweep_at("x", place).record()
    for name in ("b-2", "a-1", "c-3"):
        stored(storage, loaded, name=name)
    storage.put("a-1/run.json", b"{}")
    storage.put("sweeps/d-4/t000/run.json", b"{}")
    assert [store.name for store in sweeps(storage)] == ["a-1", "b-2", "c-3"]
    assert sweep_at("b-2", place).record().name == "b-2"
    assert sweep_at(f"{place}/sweeps/b-2/", "elsewhere").record().name == "b-2"
    with pytest.raises(UsageError, match=r"there is no sweep x in .*; it has: a-1, b-2, c-3"):
        sweep_at("x", place).record()


# the best


ENDS: list[Status] = ["finished"] * 6
ENDS += ["stopped", "stopped", "diverged", "failed", "running", "waiting"]


def ended(seed: int, **section: Any) -> Sweep:
    """Trainings that ended in all ways; numbers that are often the same."""
    rng = random.Random(seed)
    repeats, metrics = rng.choice([1, 1, 3]), rng.choice([1, 2])
    names = ["a", "b"][:metrics]
    modes = [rng.choice(["min", "max"]) for _ in names]
    given = {"metric": names, "mode": modes, "repeats": repeats, "trials": 9, **section}
    settings = SweepSection.model_validate({**given, "space": {"x": {"uniform": [0, 1]}}})
    trials = []
    for number in range(rng.randint(1, 9 * repeats)):
        configuration, repeat = divmod(number, repeats)
        images = rng.choice([300, 900, 900])
        values = tuple(rng.choice([float(rng.randint(0, 3))] * 9 + [math.nan]) for _ in names)
        status = rng.choice(ENDS)
        looks = [Look(images, values, number)] if rng.random() < 0.95 else []
        leg = Leg(f"r{number}", {"x": configuration / 9})
        trials.append(Trial(number, configuration, repeat, [leg], status, looks=looks))
    return Sweep("s", "j", settings, 900, trials, num_trials=9 * repeats)


def naive_standings(sweep: Sweep) -> list[tuple[int, list[float], int]]:
    """Another writing: each configuration by itself, then a sort by comparing pairs."""
    repeats, found = sweep.section.repeats, []
    for configuration in range(9):
        own = [t for t in sweep.trials if t.configuration == configuration]
        good = [t for t in own if t.status in ("finished", "stopped") and t.looks]
        good = [t for t in good if all(math.isfinite(v) for v in t.looks[-1].values)]
        if len(own) == len(good) == repeats:
            columns = range(len(sweep.section.metrics))
            means = [statistics.fmean(t.looks[-1].values[k] for t in own) for k in columns]
            found.append((configuration, means, min(t.looks[-1].images_seen for t in own)))
    high = sweep.section.modes[0] == "max"
    for _ in found:
        for i in range(len(found) - 1):
            (a, means, images), (b, others, seen) = found[i], found[i + 1]
            worse = means[0] < others[0] if high else means[0] > others[0]
            same = images == seen and means[0] == others[0]
            if images < seen or (images == seen and worse) or (same and a > b):
                found[i], found[i + 1] = found[i + 1], found[i]
    return found


def test_standings_are_those_of_a_naive_second_writing() -> None:
    counts = set()
    for seed in range(600):
        sweep = ended(seed)
        found = standings(sweep)
        expected = naive_standings(sweep)
        assert [(s.configuration, s.images_seen) for s in found] == [
            (configuration, images) for configuration, _, images in expected
        ]
        for standing, (configuration, means, _) in zip(found, expected, strict=True):
            assert standing.means == pytest.approx(means)
            own = [t for t in sweep.trials if t.configuration == configuration]
            assert standing.trials == tuple(t.number for t in own)
            assert standing.values == own[0].values
            for k, spread in enumerate(standing.spreads):
                values = [t.looks[-1].values[k] for t in own]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                assert spread == pytest.approx(deviation)
        counts.add(len(found))
    assert counts >= {0, 1, 2, 5}


def test_the_front_is_what_no_other_one_beats_in_both() -> None:
    lengths = set()
    for seed in range(600):
        sweep = ended(seed)
        whole = standings(sweep)
        front = []
        for one in whole:
            beaten = False
            for other in whole:
                pairs = zip(one.means, other.means, sweep.section.modes, strict=True)
                gains = [(o - m) if mode == "max" else (m - o) for m, o, mode in pairs]
                beaten |= min(gains) >= 0 < max(gains) and other.images_seen >= one.images_seen
            if not beaten:
                front.append(one)
        assert pareto_front(sweep) == front
        lengths.add(len(front))
    assert lengths >= {0, 1, 2, 3}


VALUES: list[dict[str, Value]] = [
    {"model.gamma": 0.1 + 0.2, "model.learning_rate": 2e-05},
    {"model.gamma": 1 / 3, "train.ema_decay": None, "model.filters": 24},
    {"guard.collapse": "stop", "model.gamma": 1.0},
    {"train.channels_last": True, "data.augment.flip": True},
]


@pytest.mark.parametrize("values", VALUES)
def test_a_rewritten_job_loads_with_exactly_these_values_and_has_its_comments(
    load: Load, values: Mapping[str, Value]
) -> None:
    own = ("train.batch_size=32", "data.augment={resize: 32}")
    text = rewritten(VALID, (*own, *settings(values)), ("sweep",), "the best of all")
    again = load(text).job
    assert again.sweep is None
    for path, value in values.items():
        assert at(again, path) == value
    assert again.train.batch_size == 32
    by_hand = load(VALID, "sweep=null", *own, *settings(values))
    assert flat(by_hand.render()) == flat(load(text).render())
    lines = text.splitlines()
    assert lines[:3] == [
        "#!/usr/bin/env -S orchestrator run",
        "# the best of all",
        "# A search for BEGAN's balance.",
    ]
    assert "  latent: 16          # small" in lines
    assert any(line.startswith("  gamma: ") and "# the paper's" in line for line in lines)
    assert "measure" not in text


def test_what_follows_a_section_that_is_dropped_keeps_its_comments() -> None:
    text = VALID + "\n# where it goes\nstorage: runs   # a folder\n# the end\n"
    done = rewritten(text, (), ("sweep",), "best")
    head = VALID[: VALID.index("sweep:")].replace("run\n#", "run\n# best\n#", 1)
    assert done == head + "\n# where it goes\nstorage: runs   # a folder\n# the end\n"


def test_a_job_without_comments_and_one_in_braces_are_rewritten_too() -> None:
    assert rewritten("name: x\nsweep: {a: 1}\n", ("a.b=2",), ("sweep",), "best") == (
        "# best\nname: x\na:\n  b: 2\n"
    )
    assert rewritten("{name: x, sweep: {a: 1}}\n", (), ("sweep",), "best") == "# best\n{name: x}\n"
    shared = "name: x\nsweep: {space: &a {b: 1}}\nother: *a\n"
    assert load_text_of(rewritten(shared, (), ("sweep",), "best")) == {
        "name": "x",
        "other": {"b": 1},
    }


def load_text_of(text: str) -> Any:
    from orchestrator.jobfile.source import parse

    return parse(text, "x").data


# the commands


@pytest.fixture
def command(load: Load, tmp_path: Path) -> Callable[..., Result]:
    """Runs `orchestrator sweep` on a storage with one sweep in it, whose driver has ended."""
    loaded = load(edited("  trials: 6", "  trials: 4\n  repeats: 1"), "train.seed=5")
    store = stored(open_storage(str(tmp_path / "store")), loaded)
    ends: list[tuple[Status, int, float]] = [
        ("finished", 8000, 0.5), ("stopped", 800, 0.1), ("finished", 8000, 0.25),
        ("diverged", 400, math.nan),
    ]  # fmt: skip
    for number, (status, images, value) in enumerate(ends):
        trial = proposed(loaded, number)
        trial.status, trial.looks = status, [Look(images, (value,), number)]
        trial.why = "no longer finite\nmore" if status == "diverged" else ""
        store.save(trial)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(
            cli.app, ["sweep", *arguments, "--storage", str(tmp_path / "store")]
        )

    return run


def test_sweeps_are_listed(command: Callable[..., Result]) -> None:
    done = command("ls", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == [{"name": "balance-1", "state": "stopped", "trials": 4}]
    heading, line = command("ls").stdout.splitlines()
    assert heading.split() == ["name", "state", "trainings", "over", "best"]
    assert line.startswith("balance-1  stopped  4 of 4          m_global 0.25 with model.gamma 0.")


def test_a_sweep_is_shown_with_the_best_first(command: Callable[..., Result], load: Load) -> None:
    done = command("show", "balance-1", "--json")
    told = json.loads(done.stdout)
    assert (told["name"], told["state"], told["metric"]) == ("balance-1", "stopped", ["m_global"])
    assert [standing["trials"] for standing in told["standings"]] == [[2], [0], [1]]
    assert [standing["means"] for standing in told["standings"]] == [[0.25], [0.5], [0.1]]
    trials = [Trial.from_json(trial) for trial in told["trials"]]
    assert [trial.status for trial in trials] == ["finished", "stopped", "finished", "diverged"]
    assert told["trials"][3]["looks"][0]["values"] == [None]
    rows = [line.split() for line in command("show", "balance-1").stdout.splitlines()]
    assert [row[:4] for row in rows[1:]] == [
        ["2", "finished", "8,000", "0.25"],
        ["0", "finished", "8,000", "0.5"],
        ["1", "stopped", "800", "0.1"],
        ["3", "diverged", "400", "nan"],
    ]
    assert rows[4][-3:] == ["no", "longer", "finite"]


def test_the_best_job_is_printed_ready_to_run(
    command: Callable[..., Result], load: Load, tmp_path: Path
) -> None:
    before = (tmp_path / "x.yaml").read_text()
    done = command("best", "balance-1")
    assert done.exit_code == 0
    job = load_text(done.stdout, Path("best.yaml")).job
    loaded = load(before, "train.seed=5")
    values = proposed(loaded, 2).values
    assert {path: at(job, path) for path in values} == values
    assert (job.sweep, job.train.seed) == (None, 5)
    assert done.stdout.splitlines()[1].startswith(
        "# Best of sweep balance-1 (training 2 of 4, 8,000 images each): m_global 0.25 with "
    )


def test_a_sweep_without_a_number_has_no_best_and_one_that_ended_cannot_be_stopped(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    store = sweep_at("balance-1", str(tmp_path / "store"))
    for trial in store.trials():
        store.save(replace(trial, status="failed"))
    for arguments, words in (
        (("best", "balance-1"), "no training of sweep balance-1 has ended with a number yet"),
        (("stop", "balance-1"), "sweep balance-1 is not running but stopped"),
        (("show", "other"), "there is no sweep other in"),
    ):
        done = command(*arguments)
        assert isinstance(done.exception, UsageError)
        assert words in str(done.exception)
    assert not store.asked_to_stop()


def test_an_empty_storage_lists_nothing(load: Load, tmp_path: Path) -> None:
    runner = CliRunner()
    given = ["sweep", "ls", "--storage", str(tmp_path / "none")]
    assert json.loads(runner.invoke(cli.app, [*given, "--json"]).stdout) == []
    listed = runner.invoke(cli.app, given)
    assert listed.stdout == ""
    assert listed.stderr.startswith(f"no sweeps in {tmp_path}/none; `orchestrator run` on a job")


# the plan


def test_a_plan_tells_of_the_sweep(load: Load) -> None:
    loaded = load(
        edited("trials: 6", "trials: 6\n  repeats: 3\n  scheduler: asha\n  max_hours: 2\n").replace(
            "  max_hours: 2\n\n", "  max_hours: 2\n"
        ),
        "sweep.max_concurrent=1",
    )
    made = make_plan(loaded)
    assert made.sweep is not None
    assert (made.sweep.trainings, made.sweep.configurations, made.sweep.repeats) == (18, 6, 3)
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
