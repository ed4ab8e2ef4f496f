"""The preStop hooks of pods: workers are asked to save, and the pod waits until they have."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.kubernetes.pods import HEAD_PRE_STOP, NOTICE_S, WORKER_PRE_STOP
from services.ray_cluster import BIN, start_head
from services.ray_connection import ray_in_this_process
from support.waiting import wait_until

pytestmark = pytest.mark.ray


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of one node, to which this process is connected."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        cluster = start_head(num_cpus=1, temp_dir=temp, include_dashboard=False)
        try:
            with ray_in_this_process(cluster.address):
                yield cluster.head_node
        finally:
            cluster.shutdown()


def start(script: str, proc: Path, **environ: str) -> subprocess.Popen[str]:
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path, "PROC": str(proc), **environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_worker_pod_drains_its_node_and_ends_after_its_workers(node: Any, tmp_path: Path) -> None:
    class Saving:
        """Worker that is still saving."""

        def pid(self) -> int:
            return os.getpid()

        def save(self) -> None:
            time.sleep(600)

    worker: Any = ray.remote(num_cpus=1)(Saving).remote()
    pid = ray.get(worker.pid.remote())
    worker.save.remote()
    # A pod sees its own processes; this machine has those of other tests too.
    raylet = node.all_processes["raylet"][0].process.pid
    for number in (raylet, pid):
        (tmp_path / str(number)).symlink_to(f"/proc/{number}")
    for number, name in ((1, "ray::IDLE"), (2, "ray::DashboardAgent")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes(name.encode() + bytes(30))
    began = time.time()
    script = start(WORKER_PRE_STOP, tmp_path, RAY_ADDRESS=node.address)
    draining = ray._private.state.state.get_draining_nodes
    wait_until(draining, 60, "the drain")
    ((drained, deadline_ms),) = draining().items()
    assert drained == node.node_id
    assert began + NOTICE_S <= deadline_ms / 1000 <= time.time() + NOTICE_S
    time.sleep(3)  # some rounds of its loop
    assert script.poll() is None, script.communicate()[0]
    ray.kill(worker)
    output, _ = script.communicate(timeout=30)
    assert script.returncode == 0, output


def test_the_head_pod_ends_after_its_driver(tmp_path: Path) -> None:
    driver = tmp_path / "17" / "cmdline"
    driver.parent.mkdir()
    driver.write_bytes(b"python\0/usr/bin/orchestrator\0run\0/jobs/x.yaml\0")
    script = start(HEAD_PRE_STOP, tmp_path)
    time.sleep(3)  # some rounds of its loop
    assert script.poll() is None
    driver.unlink()
    assert script.wait(10) == 0
