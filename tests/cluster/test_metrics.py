"""Metrics of a real run on a real cluster, scraped by a real Prometheus."""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator.cluster.failure_policy import Cause, Failure
from orchestrator.cluster.metrics_exporter import GAUGES, PREFIX, MetricsExporter
from orchestrator.cluster.worker_state import Heartbeat, WorkerGroupStatus
from orchestrator.config.load import load_job
from orchestrator.console import ProgressReport
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.training.interfaces import STEP
from services.prometheus import MONITORING, Prometheus, installed, prometheus
from services.ray_cluster import RayCluster, ray_cluster
from support.drawings import draw_pairs
from support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]
needs_prometheus = pytest.mark.skipif(
    not installed(), reason="prometheus is not installed: apt-get install prometheus"
)
JOB = """\
name: small
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16,
  norm: instance}}
data: {{train: {data}/train, validation: {data}/validation, threads: 1}}
train: {{images: {images}, batch_size: 4, log_every: 40, checkpoint_every: 1000,
  validate_every: 2000, sample_every: {images}}}
cluster: {{workers: 2}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
cost: {{cpu_hour: 0.04, currency: EUR}}
"""
IMAGES = 4000
"""Ray sends gauges every 10 s: on a fast machine too the run must last until then."""
ON_GPUS = {"gpu_memory_bytes"}
"""Gauges without a value in a run on CPUs."""


@dataclass(frozen=True)
class Scraped:
    """A run that has ended, and the Prometheus that scraped it."""

    prometheus: Prometheus
    cluster: RayCluster
    folder: Path
    while_it_ran: dict[str, dict[Any, float]]
    """Some gauges while it ran."""

    def newest(self, gauge: str, **labels: str) -> float:
        """Last value of a gauge of the run."""
        chosen = ",".join(f'{k}="{v}"' for k, v in {"job_name": "small", **labels}.items())
        expression = f"last_over_time(ray_{PREFIX}{gauge}{{{chosen}}}[30m])"
        (value,) = self.prometheus.query(expression).values()
        return value


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("metrics")
    pairs = draw_pairs(folder / "pairs", count=40, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    job = folder / "small.yaml"
    job.write_text(JOB.format(data=folder / "data", folder=folder, images=IMAGES))
    with ray_cluster(folder, {"OMP_NUM_THREADS": "1"}) as cluster:
        discovery = cluster.folder / "prom_metrics_service_discovery.json"
        with prometheus(folder / "prometheus", discovery) as server:
            command = ["orchestrator", "run", str(job)]
            environ = {k: v for k, v in cluster.environ.items() if k != "RAY_ADDRESS"}
            node = cluster.gcs_address
            with (folder / "output.txt").open("wb") as output:
                process = subprocess.Popen(
                    command, cwd=folder, env={**environ, "RAY_ADDRESS": node}, stderr=output
                )
            names = ("running", "workers")
            middle: dict[str, dict[Any, float]] = {}
            while process.poll() is None:
                now = {name: server.query(f"ray_{PREFIX}{name}") for name in names}
                middle = now if all(sum(found.values()) for found in now.values()) else middle
                time.sleep(0.5)
            assert process.returncode == 0, (folder / "output.txt").read_text()
            yield Scraped(server, cluster, folder, middle)


@needs_prometheus
def test_the_scraped_values_are_those_of_mlflow_and_of_the_checkpoints(scraped: Scraped) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{scraped.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    newest = {
        name: max(client.get_metric_history(run.info.run_id, name), key=lambda p: p.step)
        for name in run.data.metrics
    }
    metrics = run.data.metrics
    wait_until(lambda: scraped.newest("running") == 0, 60, "the last scrape", poll_s=0.5)

    assert scraped.newest("images_seen") == newest["generator/loss"].step == IMAGES
    assert scraped.newest("images_target") == IMAGES
    for name in ("generator/loss", "discriminator/loss", "validation/l1"):
        assert scraped.newest("metric", name=name) == pytest.approx(metrics[name], rel=1e-12)
    # These end with the workers, so that the last one sent may be older than the last report.
    rates = [p.value for p in client.get_metric_history(run.info.run_id, "images_per_s")]
    waits = [p.value for p in client.get_metric_history(run.info.run_id, "data/wait_fraction")]
    assert scraped.newest("images_per_second") in [pytest.approx(rate) for rate in rates]
    assert scraped.newest("step_seconds") in [pytest.approx(4 / rate) for rate in rates]
    assert scraped.newest("data_wait_fraction") in [pytest.approx(wait) for wait in waits]
    assert scraped.newest("restarts") == scraped.newest("diverged") == 0

    manifests = list((scraped.folder / "runs").glob("small-*/checkpoints/*/manifest.json"))
    committed = max(path.stat().st_mtime for path in manifests)
    # Between the two the checkpoint is read back.
    assert 0 <= scraped.newest("checkpoint_timestamp_seconds") - committed < 5
    assert newest["generator/loss"].timestamp / 1000 == pytest.approx(
        scraped.newest("progress_timestamp_seconds"), abs=10
    )
    cost = scraped.newest("cost", currency="EUR")
    assert cost == pytest.approx(0.04 * scraped.newest("cpu_hours"))
    points = client.get_metric_history(run.info.run_id, "cost/total")
    # The first one of the last step was reported with the losses, the second at the end.
    of_last_step = sorted(p.value for p in points if p.step == IMAGES)
    assert len(of_last_step) == 2
    assert of_last_step[0] <= cost <= of_last_step[1] == metrics["cost/total"]


@needs_prometheus
def test_gauges_exist_while_the_run_does_and_leave_nothing_behind_that_could_alert(
    scraped: Scraped,
) -> None:
    for name, value in (("running", 1.0), ("workers", 2.0)):
        (labels,) = [dict(key) for key in scraped.while_it_ran[name]]
        assert labels["job_name"] == "small"
        assert labels["run"].startswith("small-")
        assert list(scraped.while_it_ran[name].values()) == [value]
    wait_until(
        lambda: not scraped.prometheus.query('{__name__=~"ray_orchestrator_.*"}'),
        60,
        "the gauges to vanish",
        poll_s=0.5,
    )
    rules = scraped.prometheus.ask("rules")["groups"][0]["rules"]
    assert {rule["name"] for rule in rules} >= {"OrchestratorStalled", "OrchestratorDiverged"}
    assert [rule for rule in rules if rule["state"] != "inactive" or rule["health"] != "ok"] == []


@needs_prometheus
def test_every_expression_of_the_dashboard_and_the_alerts_finds_its_series(
    scraped: Scraped,
) -> None:
    names = scraped.prometheus.ask("label/__name__/values")
    exported = {name.removeprefix("ray_" + PREFIX) for name in names if PREFIX in name}
    assert exported == GAUGES.keys() - ON_GPUS
    dashboard = json.loads((MONITORING / "grafana/orchestrator.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    shown = {name for text in expressions for name in re.findall(f"ray_{PREFIX}(\\w+)", text)}
    assert shown == GAUGES.keys()
    end = time.time()
    for text in expressions:
        chosen = text.replace("$job_name", "small").replace("$run", ".*")
        assert "$" not in chosen
        found = scraped.prometheus.ask(
            "query_range", query=chosen, start=str(end - 900), end=str(end), step="1"
        )
        used = set(re.findall(f"ray_{PREFIX}(\\w+)", text))
        assert bool(found["result"]) == (not used & ON_GPUS), text
    alerts = (MONITORING / "alerts.yml").read_text()
    assert set(re.findall(f"ray_{PREFIX}(\\w+)", alerts)) <= exported


@needs_prometheus
def test_the_dashboard_queries_the_chosen_data_source_and_lists_the_existing_jobs(
    scraped: Scraped,
) -> None:
    dashboard = json.loads((MONITORING / "grafana/orchestrator.json").read_text())
    source, *variables = dashboard["templating"]["list"]
    assert (source["type"], source["name"]) == ("datasource", "datasource")
    for part in (*dashboard["panels"], *variables):
        assert part["datasource"]["uid"] == "${datasource}"
    labels = [re.fullmatch(r"label_values\((.+), (\w+)\)", v["definition"]) for v in variables]
    for (selector, label), name in zip(
        [found.groups() for found in labels if found], ("job_name", "run"), strict=True
    ):
        assert label == name
        match = selector.replace("$job_name", "small")
        values = scraped.prometheus.ask(f"label/{label}/values", **{"match[]": match})
        assert len(values) == 1


@needs_prometheus
def test_each_alert_fires_for_the_runs_it_is_meant_for_and_for_no_other() -> None:
    for command in ("check config prometheus.yml", "test rules alerts_test.yml"):
        done = subprocess.run(
            ["promtool", *command.split()], cwd=MONITORING, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    rules = set(re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text()))
    tests = (MONITORING / "alerts_test.yml").read_text()
    fires = set(re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n +- ", tests))
    assert fires == rules == set(re.findall(r"alertname: (\w+), .*exp_alerts: \[\]", tests))


@needs_prometheus
def test_the_metrics_endpoint_is_open_to_whoever_reaches_its_port(scraped: Scraped) -> None:
    """That holds with Ray's token too: deploy/monitoring/README.md says to close the port."""
    (target, *_) = json.loads(
        (scraped.cluster.folder / "prom_metrics_service_discovery.json").read_text()
    )[0]["targets"]
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
        assert answer.status == 200


class Clock:
    """Clock that is set by the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def exporter(tmp_path: Path) -> tuple[MetricsExporter, Clock]:
    path = tmp_path / "small.yaml"
    path.write_text(JOB.format(data="data", folder=tmp_path, images=480))
    job = load_job(path, ["cluster.gpus_per_worker=1", "cost.gpu_hour=1"]).job
    clock = Clock()
    return MetricsExporter(job, "small-1", clock), clock


def status(
    num_steps: int, activity: str = STEP, num_failures: int = 0, **fields: Any
) -> WorkerGroupStatus:
    heartbeats = {
        rank: Heartbeat(2, "n", "h", 1, activity, 0.0, num_steps, 0.0, **fields) for rank in (0, 1)
    }
    failures = [Failure(Cause.LOST, "gone")] * num_failures
    return WorkerGroupStatus(heartbeats=heartbeats, failures=failures)


def test_only_a_step_and_what_follows_it_is_progress(
    exporter: tuple[MetricsExporter, Clock],
) -> None:
    metrics, clock = exporter
    progress = ("progress_timestamp_seconds", "")
    for now, newest, expected in (
        (1010, status(0, "starting"), 1000),
        (1020, status(0, "restoring"), 1000),  # it fails before its first step, again and again
        (1030, status(1), 1030),
        (1040, status(1), 1030),  # stuck
        (1050, status(2), 1050),
        (1060, status(2, "validating"), 1060),
        (1070, WorkerGroupStatus(), 1060),  # all workers are lost
        (1080, status(0, "restoring", 1), 1060),
        (1090, status(1, STEP, 1), 1090),
    ):
        clock.now = now
        metrics.update_safely(newest)
        assert metrics.values[progress] == expected


def test_lost_workers_have_no_rates_and_no_memory_and_the_checkpoint_keeps_its_time(
    exporter: tuple[MetricsExporter, Clock],
) -> None:
    metrics, _ = exporter
    show = metrics.wrap_report_callback(lambda report: None)
    show(
        ProgressReport(
            40, 480, {"images_per_s": 8.0, "data/wait_fraction": 0.25, "data/x": 1, "epoch": 1}
        )
    )
    metrics.update_safely(status(10, checkpoint_at=1234.5, gpu_bytes=7 << 30))
    assert metrics.values["step_seconds", ""] == 0.5
    assert metrics.values["gpu_memory_bytes", "1"] == 7 << 30
    metrics.update_safely(WorkerGroupStatus(failures=[Failure(Cause.LOST, "gone")]))
    assert metrics.values == {
        ("running", ""): 1, ("diverged", ""): 0, ("workers", ""): 0, ("restarts", ""): 1,
        ("images_seen", ""): 40, ("images_target", ""): 480,
        ("checkpoint_timestamp_seconds", ""): 1234.5, ("progress_timestamp_seconds", ""): 1000.0,
    }  # fmt: skip
    metrics.end(diverged=True)
    assert (metrics.values["running", ""], metrics.values["diverged", ""]) == (0, 1)


def test_an_error_in_the_export_is_logged_once_and_does_not_stop_the_run(
    exporter: tuple[MetricsExporter, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    metrics, _ = exporter
    shown: list[ProgressReport] = []
    broken: Any = ProgressReport(40, 480, None)  # type: ignore[arg-type]
    for _ in range(3):
        metrics.wrap_report_callback(shown.append)(broken)
        metrics.update_safely(None)  # type: ignore[arg-type]
    assert len(shown) == 3
    assert len(caplog.records) == 1
    assert "Prometheus" in caplog.text
