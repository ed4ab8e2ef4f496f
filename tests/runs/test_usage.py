"""Usage and cost of runs: compared with counting each second, and over a real stop and resume."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator.config.job import ClusterSection, CostSection, Price
from orchestrator.config.load import load_job
from orchestrator.console import ProgressDisplay, ProgressReport
from orchestrator.diagnostics.plan import make_plan
from orchestrator.errors import JobFileError, Stopped
from orchestrator.runs.driver import run_job
from orchestrator.runs.resume import compare_jobs
from orchestrator.runs.usage import Usage, UsageMeter, read_usage, sum_usage
from orchestrator.storage.local import FolderStorage
from support.small_runs import pack_pairs
from support.waiting import wait_until

pytestmark = pytest.mark.slow

JOB = """\
name: small
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16,
  norm: instance}}
data: {{train: {data}/train, validation: {data}/validation, threads: 1}}
train: {{images: 24, batch_size: 4, log_every: 4}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
cost: {{prices: prices.yaml, kind: laptop}}
"""
TABLE = """\
laptop: {cpu_hour: 3600, currency: EUR}
a10g-spot:
  gpu_hour: 0.61
  currency: EUR
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("usage"))


@pytest.fixture
def job(data: str, tmp_path: Path) -> Path:
    (tmp_path / "prices.yaml").write_text(TABLE)
    path = tmp_path / "small.yaml"
    path.write_text(JOB.format(data=data, folder=tmp_path))
    return path


@pytest.mark.parametrize("seed", range(6))
def test_usage_over_restarts_and_other_numbers_of_workers_equals_counting_each_second(
    tmp_path: Path, seed: int
) -> None:
    """Worker groups come and go, some are killed; prices change between them."""
    dice, now = random.Random(seed), 0.0

    def clock() -> float:
        return now

    storage = FolderStorage(tmp_path)
    gpu_seconds = cpu_seconds = money = 0.0
    for _ in range(dice.randint(1, 6)):
        now += dice.randint(0, 500)  # no worker group, no cost
        cluster = ClusterSection(gpus_per_worker=dice.choice((0, 1)), cpus_per_worker=3)
        price = Price(gpu_hour=dice.random() * 5, cpu_hour=dice.random(), currency="EUR")
        workers = dice.randint(1, 4)
        meter = UsageMeter(storage, "run", cluster, workers, price, clock)
        for _second in range(dice.randint(1, 300)):
            now += 1
            for _worker in range(workers):
                gpu_seconds += cluster.gpus
                cpu_seconds += 3
                money += cluster.gpus * (price.gpu_hour or 0) / 3600
                money += 3 * (price.cpu_hour or 0) / 3600
            if dice.random() < 0.1:
                meter.write()
        assert meter.run_usage().gpu_hours == pytest.approx(gpu_seconds / 3600)
        assert meter.run_usage().cpu_hours == pytest.approx(cpu_seconds / 3600)
        assert meter.run_usage().cost == pytest.approx(money)
        meter.write()
    assert sum_usage(read_usage(storage, "run"), price).cost == pytest.approx(money)


def test_usage_without_a_price_or_in_another_currency_counts_at_the_current_price() -> None:
    used = [Usage(1.0, 0.0, 2.0, "EUR"), Usage(1.0, 0.0), Usage(1.0, 0.0, 7.0, "USD")]
    assert sum_usage(used, Price(gpu_hour=3, currency="EUR")) == Usage(3.0, 0.0, 2 + 3 + 3, "EUR")
    assert sum_usage(used, None) == Usage(3.0, 0.0)


def test_a_killed_worker_group_keeps_its_last_write_and_a_corrupt_file_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runs.usage.WRITE_EVERY_S", 0.05)
    storage = FolderStorage(tmp_path)
    meter = UsageMeter(storage, "run", ClusterSection(), 2, None)
    with meter.write_periodically():
        (written,) = wait_until(lambda: read_usage(storage, "run"), 60, "the first write")
        assert 0 < written.cpu_hours <= meter.group_usage().cpu_hours
        storage.put("run/usage/broken.json", b"{")
    (last,) = read_usage(storage, "run")
    assert last.cpu_hours > written.cpu_hours, "it is written once more at the end"


def points(folder: Path, name: str) -> list[tuple[int, Any]]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in sorted(history, key=lambda p: p.timestamp)]


def test_a_resumed_run_continues_counting_from_what_it_has_used(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A different price for the rest is still the same job."""
    runs, started = tmp_path / "runs", time.monotonic()

    def stop_midway(display: ProgressDisplay, report: ProgressReport) -> None:
        if report.images_seen == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "show", stop_midway)
        with pytest.raises(Stopped):
            run_job(load_job(job))
    stopped = time.monotonic()
    (first,) = runs.glob("small-*/usage/*.json")
    paid = json.loads(first.read_text())
    assert 0 < paid["cpu_hours"] * 3600 < stopped - started
    assert points(tmp_path, "cost/total")[-1] == (12, pytest.approx(3600 * paid["cpu_hours"]))

    run_job(load_job(job, ["cost={cpu_hour: 7200, currency: EUR}"]), resume=True)
    (second,) = set(runs.glob("small-*/usage/*.json")) - {first}
    again = json.loads(second.read_text())
    assert json.loads(first.read_text()) == paid
    assert 0 < again["cpu_hours"] * 3600 < time.monotonic() - stopped
    # A second is 1 EUR before the stop and 2 EUR after it.
    assert points(tmp_path, "cost/total")[-1] == (
        24,
        pytest.approx(3600 * (paid["cpu_hours"] + 2 * again["cpu_hours"])),
    )
    hours = [value for _, value in points(tmp_path, "cost/cpu_hours")]
    assert hours == sorted(hours)
    assert hours[-1] == pytest.approx(paid["cpu_hours"] + again["cpu_hours"])


def test_the_resolved_job_holds_the_price_and_needs_no_price_table(
    job: Path, tmp_path: Path
) -> None:
    loaded = load_job(job, ["cost.kind=a10g-spot", "cluster.gpus_per_worker=1"])
    assert loaded.job.cost == CostSection(gpu_hour=0.61, currency="EUR", kind="a10g-spot")
    elsewhere = tmp_path / "elsewhere" / "job.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(loaded.render())
    assert load_job(elsewhere).job == loaded.job
    assert compare_jobs(load_job(job).render(), load_job(job, ["cost=null"]).render()) == []
    row = next(r for r in make_plan(loaded).render().splitlines() if r.startswith("price"))
    assert "0.61 EUR per hour" in row


@pytest.mark.parametrize(
    ("table", "setting", "message"),
    [
        (TABLE, "kind=a10g", "small.yaml:8:7: cost.kind: 'a10g' is not in"),
        (TABLE, "kind=a10g", "did you mean a10g-spot?"),
        (TABLE, "kind=tpu", "it has: laptop, a10g-spot"),
        (TABLE, "kind=null", "cost.prices: also needs the kind of machine"),
        (TABLE, "gpu_hour=2", "cost.gpu_hour: is given in addition to cost.prices"),
        (TABLE, "prices=price.yaml", "file not found; did you mean"),
        ("laptop: {cpu_hour: -1}", "kind=laptop", "prices.yaml:1:10: laptop.cpu_hour: -1 is out"),
        ("laptop: {cpu_hour: '1'}", "kind=laptop", "expected a number; remove the quotes"),
        ("laptop: {cpuhour: 1}", "kind=laptop", "unknown key; a price has: gpu_hour, cpu_hour"),
        ("laptop: 3", "kind=laptop", "prices.yaml:1:1: laptop: must be a mapping"),
        ("laptop: {currency: EUR}", "kind=laptop", "cost: has no price; give gpu_hour or"),
        ("- laptop", "kind=laptop", "is not a mapping; write"),
        ("laptop: {", "kind=laptop", "a bracket is opened here but never closed"),
        ("laptop: 1\nlaptop: 2", "kind=laptop", "prices.yaml:2:1: laptop: duplicate key"),
    ],
)
def test_a_mistake_in_or_about_the_price_table_is_reported_with_its_position(
    job: Path, table: str, setting: str, message: str
) -> None:
    (job.parent / "prices.yaml").write_text(table)
    with pytest.raises(JobFileError) as caught:
        load_job(job, [f"cost.{setting}"])
    assert message.replace("small.yaml:8:7", "--set cost.kind=a10g") in str(caught.value)


def test_gpus_without_a_gpu_price_are_a_mistake(job: Path) -> None:
    with pytest.raises(JobFileError, match=r"cost: has no gpu_hour, and cluster.gpus_per_worker"):
        load_job(job, ["cost={cpu_hour: 1}", "cluster.gpus_per_worker=1"])
