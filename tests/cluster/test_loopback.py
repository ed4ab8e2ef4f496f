"""What `run` starts on a single machine can be reached from that machine alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.listening import exposed, listening
from support.small_runs import pack_pairs, write_job

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
def test_the_workers_of_a_run_listen_on_loopback_alone(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_", "NCCL_"))}
    environ["RAY_AUTH_MODE"] = "disabled"
    job = write_job(tmp_path / "job", pack_pairs(tmp_path))
    command = [sys.executable, "-m", "orchestrator", "run", str(job), "--set", "train.images=100"]
    found: set[tuple[str, str]] = set()
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            found |= listening(run.pid)
            time.sleep(0.3)
        assert run.stderr is not None
        text = run.stderr.read()
    assert run.returncode == 0, text
    assert any("RayTrainWorker" in title for title, _ in found)
    assert exposed(found) == set()
