"""Prometheus, with the settings and alerts of deploy/monitoring, and a service."""

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.serving.access import AccessOptions
from orchestrator.serving.service_metrics import PREFIX, ServiceMetrics
from services.prometheus import MONITORING, installed, prometheus
from support.served import Client, running, service_of, slot_of, write_model
from support.small import scattered_model
from support.waiting import wait_until

needs_prometheus = pytest.mark.skipif(
    not installed(), reason="prometheus is not installed: apt-get install prometheus"
)
TOKEN = "a-token-of-enough-length"


def test_every_metric_of_the_alerts_is_exported_with_its_labels() -> None:
    metrics = ServiceMetrics()
    metrics.draw_errors.labels("main", "m/1").inc()
    metrics.draw_seconds.labels("main", "m/1").observe(1)
    metrics.refresh_failures.labels("main").inc()
    exported = metrics.render().decode()
    used = set(re.findall(rf"{PREFIX}\w+", (MONITORING / "alerts.yml").read_text()))
    assert len(used) == 3
    for name in used:
        labels = 'role="main"' if "refresh" in name else 'role="main",version="m/1"'
        assert f"\n{name}{{{labels}}} 1.0\n" in exported


@needs_prometheus
def test_each_alert_on_a_service_fires_when_it_should_and_not_otherwise() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=MONITORING, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.server
@needs_prometheus
def test_a_service_with_a_token_is_scraped_and_every_alert_can_be_evaluated(tmp_path: Path) -> None:
    write_model(tmp_path / "model", scattered_model("gan").eval())
    token = tmp_path / "token"
    token.write_text(TOKEN)
    slot = slot_of(tmp_path / "model", ServiceMetrics())
    with running(service_of(slot), AccessOptions(token=TOKEN)) as client:
        signed = Client(client.port, {"authorization": f"Bearer {TOKEN}"})
        assert signed.post("/v1/sample", {"seeds": [1, 2]}).status == 200
        address = f"127.0.0.1:{client.port}"
        with prometheus(tmp_path / "p", tmp_path / "none.json", address, token) as server:
            name = f"{PREFIX}draw_seconds_count"
            wait_until(lambda: server.query(name), 60, "the first scrape", poll_s=0.5)
            ((labels, value),) = server.query(name).items()
            assert value == 1
            assert {("job", "orchestrator-serve"), ("version", "gan/1")} <= set(labels)
            groups = server.ask("rules")["groups"]
            (rules,) = (g["rules"] for g in groups if g["name"] == "orchestrator-serve")
            assert {rule["name"] for rule in rules} == {
                "OrchestratorServeErrors",
                "OrchestratorServeRefreshFails",
            }
            assert {rule["state"] for rule in rules} == {"inactive"}
