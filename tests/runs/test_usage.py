"""What runs have used: against a slow counting by hand, and over a real stop and resume."""

import json
import os
import random
import signal
import time
from pathlib import Path

import mlflow
import pytest

from orchestrator.config.job import ClusterSection, CostSection, Price
from orchestrator.config.load import load_job
from orchestrator.console import ProgressDisplay, Report
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.plan import make_plan
from orchestrator.errors import JobFileError, Stopped
from orchestrator.runs.driver import run_job
from orchestrator.runs.record import differences
from orchestrator.runs.usage import Meter, Usage, recorded, total
from orchestrator.storage.local import FolderStorage
from support.drawings import draw_pairs

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
    folder = tmp_path_factory.mktemp("costs")
    pairs = draw_pairs(folder / "pairs", count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


@pytest.fixture
def job(data: str, tmp_path: Path) -> Path:
    (tmp_path / "prices.yaml").write_text(TABLE)
    path = tmp_path / "small.yaml"
    path.write_text(JOB.format(data=data, folder=tmp_path))
    return path


@pytest.mark.parametrize("seed", range(6))
def test_restarts_and_another_number_of_workers_add_up_as_when_each_second_is_counted(
    tmp_path: Path, seed: int
) -> None:
    """Groups of workers come and go, some without a word; prices change between them."""
    dice, now = random.Random(seed), 0.0

    def clock() -> float:
        return now

    storage = FolderStorage(tmp_path)
    gpu_seconds = cpu_seconds = money = 0.0
    for _ in range(dice.randint(1, 6)):
        now += dice.randint(0, 500)  # nobody works, nothing is paid
        cluster = ClusterSection(gpus_per_worker=dice.randint(0, 1), cpus_per_worker=3)
        price = Price(gpu_hour=dice.random() * 5, cpu_hour=dice.random(), currency="EUR")
        workers = dice.randint(1, 4)
        meter = Meter(storage, "run", cluster, workers, price, clock)
        for _second in range(dice.randint(1, 300)):
            now += 1
            for _worker in range(workers):
                gpu_seconds += cluster.gpus_per_worker
                cpu_seconds += 3
                money += cluster.gpus_per_worker * (price.gpu_hour or 0) / 3600
                money += 3 * (price.cpu_hour or 0) / 3600
            if dice.random() < 0.1:
                meter.write()
        assert meter.all().gpu_hours == pytest.approx(gpu_seconds / 3600)
        assert meter.all().cpu_hours == pytest.approx(cpu_seconds / 3600)
        assert meter.all().cost == pytest.approx(money)
        meter.write()
    assert total(recorded(storage, "run"), price).cost == pytest.approx(money)


def test_what_had_no_price_or_one_in_another_currency_counts_at_the_present_one() -> None:
    used = [Usage(1.0, 0.0, 2.0, "EUR"), Usage(1.0, 0.0), Usage(1.0, 0.0, 7.0, "USD")]
    assert total(used, Price(gpu_hour=3, currency="EUR")) == Usage(3.0, 0.0, 2 + 3 + 3, "EUR")
    assert total(used, None) == Usage(3.0, 0.0)


def test_a_group_that_is_killed_loses_seconds_and_a_damaged_record_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runs.usage.WRITE_S", 0.05)
    storage = FolderStorage(tmp_path)
    meter = Meter(storage, "run", ClusterSection(), 2, None)
    with meter.writing():
        time.sleep(0.5)
        (while_it_lives,) = recorded(storage, "run")
        assert 0 < while_it_lives.cpu_hours <= meter.own().cpu_hours
        storage.put("run/usage/broken.json", b"{")
    assert len(recorded(storage, "run")) == 1


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in sorted(history, key=lambda p: p.timestamp)]


def test_a_run_that_was_stopped_goes_on_counting_from_what_it_had_used(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another price for the rest is no other job."""
    runs, begun = tmp_path / "runs", time.monotonic()

    def stop_midway(display: ProgressDisplay, report: Report) -> None:
        if report.images_seen == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "show", stop_midway)
        with pytest.raises(Stopped):
            run_job(load_job(job))
    stopped = time.monotonic()
    (first,) = runs.glob("small-*/usage/*.json")
    paid = json.loads(first.read_text())
    assert 0 < paid["cpu_hours"] * 3600 < stopped - begun
    assert points(tmp_path, "cost/total")[-1] == (12, pytest.approx(3600 * paid["cpu_hours"]))

    run_job(load_job(job, ["cost={cpu_hour: 7200, currency: EUR}"]), resume=True)
    (second,) = set(runs.glob("small-*/usage/*.json")) - {first}
    again = json.loads(second.read_text())
    assert json.loads(first.read_text()) == paid
    assert 0 < again["cpu_hours"] * 3600 < time.monotonic() - stopped
    # A second is 1 EUR before the stop and 2 EUR after it.
    told = points(tmp_path, "cost/total")[-1]
    assert told == (24, pytest.approx(3600 * (paid["cpu_hours"] + 2 * again["cpu_hours"])))
    hours = [value for _, value in points(tmp_path, "cost/cpu_hours")]
    assert hours == sorted(hours)
    assert hours[-1] == pytest.approx(paid["cpu_hours"] + again["cpu_hours"])


def test_the_price_of_the_table_is_in_the_job_which_then_needs_no_table(
    job: Path, tmp_path: Path
) -> None:
    loaded = load_job(job, ["cost.kind=a10g-spot", "cluster.gpus_per_worker=1"])
    assert loaded.job.cost == CostSection(gpu_hour=0.61, currency="EUR", kind="a10g-spot")
    elsewhere = tmp_path / "elsewhere" / "job.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(loaded.render())
    assert load_job(elsewhere).job == loaded.job
    assert differences(load_job(job).render(), load_job(job, ["cost=null"]).render()) == []
    row = next(r for r in make_plan(loaded).render().splitlines() if r.startswith("price"))
    assert "0.61 EUR an hour" in row


@pytest.mark.parametrize(
    ("table", "given", "words"),
    [
        (TABLE, "kind=a10g", "small.yaml:8:7: cost.kind: 'a10g' is no kind of"),
        (TABLE, "kind=a10g", "did you mean a10g-spot?"),
        (TABLE, "kind=tpu", "it has: laptop, a10g-spot"),
        (TABLE, "kind=null", "cost.prices: needs the kind of machine too"),
        (TABLE, "gpu_hour=2", "cost.gpu_hour: is given beside cost.prices"),
        (TABLE, "prices=price.yaml", "there is no such file; did you mean"),
        ("laptop: {cpu_hour: -1}", "kind=laptop", "prices.yaml:1:10: laptop.cpu_hour: -1 is out"),
        ("laptop: {cpu_hour: '1'}", "kind=laptop", "expected a number; remove the quotes"),
        ("laptop: {cpuhour: 1}", "kind=laptop", "unknown key; a price has: gpu_hour, cpu_hour"),
        ("laptop: 3", "kind=laptop", "prices.yaml:1:1: laptop: is no section"),
        ("laptop: {currency: EUR}", "kind=laptop", "cost: has no price; give gpu_hour or"),
        ("- laptop", "kind=laptop", "has no kinds; write"),
        ("laptop: {", "kind=laptop", "a bracket is opened here and never closed"),
        ("laptop: 1\nlaptop: 2", "kind=laptop", "prices.yaml:2:1: laptop: duplicate key"),
    ],
)
def test_a_mistake_in_the_table_or_about_it_is_told_with_its_place(
    job: Path, table: str, given: str, words: str
) -> None:
    (job.parent / "prices.yaml").write_text(table)
    with pytest.raises(JobFileError) as caught:
        load_job(job, [f"cost.{given}"])
    assert words.replace("small.yaml:8:7", "--set cost.kind=a10g") in str(caught.value)


def test_gpus_without_a_price_are_a_mistake(job: Path) -> None:
    with pytest.raises(JobFileError, match=r"cost: has no gpu_hour, and cluster.gpus_per_worker"):
        load_job(job, ["cost={cpu_hour: 1}", "cluster.gpus_per_worker=1"])
