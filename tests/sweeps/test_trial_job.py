"""Jobs of a sweep's trials."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.config.flatten import flatten
from orchestrator.config.load import LoadedJob, load_job, load_text
from orchestrator.runs.resolved_job import resolve_job
from orchestrator.sweeps.records import IntermediateResult
from orchestrator.sweeps.store import SweepRecord
from orchestrator.sweeps.trial_job import load_trial_job, make_task, resolve_report_every
from services.fixtures_jobs import Load
from support.sweep_jobs import SPACE, VALID, VALIDATING, at, edited, make_record, suggest_trial

ONE = "{model.gamma: {choice: [0.5]}}"
JOBS = Path(__file__).parents[2] / "jobs"


def check_trial(loaded: LoadedJob, record: SweepRecord, number: int) -> LoadedJob:
    """Check that a trial's job differs from the sweep's own job only where it should."""
    trial = suggest_trial(loaded, number)
    own = load_trial_job(loaded, record, trial)
    job, train = own.job, own.job.train
    assert job.sweep is None
    assert job.register_as is None
    assert train.seed == loaded.job.train.seed + trial.seed_index
    for path, value in trial.values.items():
        assert at(job, path) == value
    free = {*trial.values, "train.seed", "sweep", "register"}
    free |= {f"train.{kind}_every" for kind in ("log", "checkpoint", "sample", "validate")}
    before, now = flatten(loaded.render()), flatten(own.render())
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
def test_a_trials_job_has_its_values_its_seed_and_no_sweep(load: Load, searcher: str) -> None:
    text = edited(SPACE, SPACE + "    model.filters: {quniform: [8, 32, 8]}\n")
    text = edited(
        "  trials: 6", f"  trials: 6\n  seeds_per_config: 3\n  searcher: {searcher}", text
    )
    loaded = load(text, "train.seed=40", "register={name: x}")
    record = make_record(loaded)
    seeds = [check_trial(loaded, record, number).job.train.seed for number in range(9)]
    assert seeds == [40, 41, 42] * 3


@settings(max_examples=25, deadline=20_000)
@given(every=st.integers(1, 5000), batch=st.integers(1, 300))
@example(every=999_999_937, batch=64)  # a prime
def test_the_default_interval_of_logs_is_the_shortest_that_divides_a_result(
    every: int, batch: int
) -> None:
    loaded = load_text(VALID, Path("x.yaml"), [f"train.batch_size={batch}", "sweep.space=" + ONE])
    record = replace(make_record(loaded), report_every=every)
    found = load_trial_job(loaded, record, suggest_trial(loaded, 0)).job.train.log_every
    shortest = max(batch, every // 10)
    if every < 10_000:
        assert found == next((n for n in range(shortest, every) if every % n == 0), every)
    else:
        assert found == every


def test_given_intervals_are_kept_and_results_fall_on_logged_points(load: Load) -> None:
    own = ("train.log_every=48", "train.checkpoint_every=800", "train.sample_every=1600")
    loaded = load(VALID, *own)
    record = make_record(loaded)
    # A twentieth of 8000 is 400; 432 is the next multiple of 48.
    assert record.report_every == 432
    train = load_trial_job(loaded, record, suggest_trial(loaded, 0)).job.train
    assert (train.log_every, train.checkpoint_every, train.sample_every) == (48, 800, 1600)
    both = load(
        edited("metric: validation/l1 ", "metric: [autoencoder/mse, validation/l1] ", VALIDATING),
        "train.log_every=300",
        "train.validate_every=200",
    )
    assert resolve_report_every(both.job, 8000) == 600
    assert resolve_report_every(load().job, 8000) == 400
    assert resolve_report_every(load().job, 160) == 16
    assert resolve_report_every(load(VALID, "sweep.report_every=1000").job, 8000) == 1000
    assert resolve_report_every(load(VALID, "sweep.report_every=9000").job, 8000) == 8000


@pytest.mark.parametrize("every", [1, 7, 16, 17, 400, 997, 8000])
def test_the_logging_interval_divides_every_report_interval(load: Load, every: int) -> None:
    """Even if the interval is less than a batch, or a prime."""
    loaded = load(VALID, f"sweep.report_every={every}")
    check_trial(loaded, make_record(loaded), 0)


def test_a_task_has_everything_its_process_needs(load: Load) -> None:
    loaded = load(VALID, "sweep.seeds_per_config=2", "storage=/store")
    record, trial = make_record(loaded), suggest_trial(loaded, 3)
    trial.results = [IntermediateResult(800, (1.0,), 0)]
    task = make_task(trial, record, resolve_job(loaded))
    assert (task.number, task.images_seen, task.total_images) == (3, 800, 8000)
    assert (task.metrics, task.report_every) == (("began/m_global",), 400)
    assert (task.resolved.job.storage, task.resolved.job.tracking.experiment) == (
        "/store",
        "balance",
    )
    assert task.tags == {
        "mlflow.parentRunId": "parent",
        "sweep": "balance-1",
        "sweep.trial": "3",
        "sweep.configuration": "1",
    }


@pytest.mark.parametrize("name", ["began_sweep", "pix2pix_sweep"])
def test_the_repositorys_sweep_jobs_and_their_trials_load(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_job(JOBS / f"{name}.yaml")
    assert loaded.job.sweep is not None
    total = loaded.job.train.total_images(4000)
    record = make_record(loaded, total=total)
    for number in range(5):
        check_trial(loaded, record, number)
