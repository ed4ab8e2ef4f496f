"""What `run` starts on a single machine can be reached from that machine alone."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.cluster.ray_compat import on_loopback
from services.ray_cluster import start_head
from support.listening import exposed, listening
from support.small_runs import SWEEP, pack_pairs, write_job

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray

LISTENING = """
import os, sys
import psutil, ray
from orchestrator.cluster.ray_session import ray_session
before = dict(os.environ)
with ray_session("-", 1):
    ray.get(ray.remote(lambda: None).remote())
    print("started", flush=True)
    sys.stdin.readline()
assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") is None
"""


def test_the_head_of_a_run_listens_on_loopback_alone(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environ["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-c", LISTENING]
    with subprocess.Popen(
        command, env=environ, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        assert driver.stdout.readline() == "started\n"
        time.sleep(2)  # the agents of the node start after its first task
        found = listening(driver.pid)
        driver.communicate("\n", timeout=60)
    assert len(found) > 5
    assert exposed(found) == set()
    assert driver.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "process"), [("", "RayTrainWorker"), (SWEEP, "ResourceTrainable")]
)
def test_the_workers_of_a_run_listen_on_loopback_alone(
    tmp_path: Path, more: str, process: str
) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_", "NCCL_"))}
    environ["RAY_AUTH_MODE"] = "disabled"
    job = write_job(tmp_path / "job", pack_pairs(tmp_path))
    job.write_text(job.read_text() + more)
    command = [sys.executable, "-m", "orchestrator", "run", str(job), "--set", "train.images=100"]
    found, text = watch(command, environ)
    assert any(process in title for title, _ in found)
    assert not any("AutoscalingCoordinator" in title for title, _ in found)
    assert exposed(found) == set(), text


@pytest.mark.slow
def test_the_probe_of_a_cluster_on_one_machine_listens_on_loopback_alone(tmp_path: Path) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp,
        on_loopback(),
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("RAY_ADDRESS", "GLOO_SOCKET_IFNAME"):
            patch.delenv(name, raising=False)
        options = {"num_cpus": 1, "temp_dir": temp, "include_dashboard": False}
        cluster = start_head(**options)
        cluster.add_node(num_cpus=1)
        places = {"ORCHESTRATOR_STORAGE": str(tmp_path / "runs"), "RAY_ADDRESS": cluster.address}
        command = [sys.executable, "-m", "orchestrator", "doctor", "--cluster", "--json"]
        try:
            found, text = watch(command, {**os.environ, **places}, tmp_path)
        finally:
            cluster.shutdown()
    measured = json.loads(text)["all_reduce"]
    assert (measured["problem"], len(measured["nodes"])) == ("", 2)
    assert any("NodeProbe" in title for title, _ in found)
    assert exposed(found) == set()


def watch(
    command: list[str], environ: Mapping[str, str], folder: Path | None = None
) -> tuple[set[tuple[str, str]], str]:
    """Run a command; return what listens meanwhile below this process, and what it prints."""
    found: set[tuple[str, str]] = set()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, env=environ, cwd=folder, stdout=output, stderr=log) as run:
            while run.poll() is None:
                found |= listening(os.getpid())
                time.sleep(0.3)
        for file in (output, log):
            file.seek(0)
        text = output.read()
        assert run.returncode == 0, text + log.read()
    return found, text
