"""What `run` starts on a single machine can be reached from that machine alone."""

import os
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

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


def exposed(pid: int) -> set[tuple[str, str]]:
    """Processes of the session of ``pid`` that listen beyond loopback, with the address."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            for address in (connection.laddr.ip for connection in listening):
                if not ip_address(address.removeprefix("::ffff:")).is_loopback:
                    found.add((process.name(), address))
        except psutil.Error:
            continue
    return found


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
        found = exposed(driver.pid)
        driver.communicate("\n", timeout=60)
    assert found == set()
    assert driver.returncode == 0
