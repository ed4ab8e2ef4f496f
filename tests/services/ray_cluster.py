"""A real Ray cluster for tests: `ray start --head` as a user types it, in a given folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from support.waiting import wait_until

from .ports import free_port

BIN = Path(sys.executable).parent
"""Folder of the commands `ray` and `orchestrator`."""


@dataclass(frozen=True)
class RayCluster:
    """A running cluster of one node."""

    address: str
    """Address of its Jobs API: http://127.0.0.1:port."""
    environ: Mapping[str, str]
    """Environment of a shell that uses the cluster."""
    folder: Path
    """Ray's own folder, of `--temp-dir`."""
    gcs_address: str
    """host:port of its control store, for RAY_ADDRESS."""

    def call(
        self, *command: str, cwd: Path, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster; stdout and stderr together."""
        return subprocess.run(
            command,
            cwd=cwd,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def start_head(**options: Any) -> Any:
    """Start a Ray cluster of one node, to which a test adds nodes; ``options`` are the node's."""
    # Cluster notes its address in this folder, which only `ray start` and ray.init make.
    Path("/tmp/ray").mkdir(exist_ok=True)
    return Cluster(initialize_head=True, head_node_args=options)


@contextlib.contextmanager
def ray_cluster(
    folder: Path, environ: Mapping[str, str], num_cpus: int = 4
) -> Iterator[RayCluster]:
    """Run a cluster whose jobs start in ``folder`` with ``environ`` until the block ends."""
    port = free_port()
    environ = {
        **os.environ,
        **environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    environ.pop("RAY_ADDRESS", None)
    # Ray keeps Unix sockets in its folder, whose path must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        command = ["ray", "start", "--head", "--block", "--port=0", f"--num-cpus={num_cpus}"]
        command += [f"--dashboard-port={port}", "--disable-usage-stats", f"--temp-dir={temp}"]
        # The agent starts the jobs; another cluster of this machine may have its usual port.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        with Path(temp, "start.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        address = f"http://127.0.0.1:{port}"
        try:
            _wait(address, process, Path(temp, "start.log"))
            started = Path(temp, "ray_current_cluster")  # may be written after jobs are accepted
            wait_until(started.is_file, 60, "the end of ray start", poll_s=0.1)
            user = {**environ, "RAY_ADDRESS": address}
            yield RayCluster(address, user, Path(temp), started.read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the cluster accepts jobs, some seconds after it answers."""
    deadline = time.monotonic() + 300
    job = json.dumps({"entrypoint": "true"}).encode()
    headers = {"Content-Type": "application/json"}
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError):
            request = urllib.request.Request(f"{address}/api/jobs/", job, headers)
            urllib.request.urlopen(request, timeout=10).close()
            return
        time.sleep(0.3)
    raise RuntimeError(f"the Ray cluster did not start:\n{log.read_text()[-3000:]}")
