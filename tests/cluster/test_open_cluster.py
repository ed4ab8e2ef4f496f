"""The doctor's check for clusters that need no token, with real Ray heads."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.diagnostics.doctor import check_ray_authentication
from orchestrator.diagnostics.open_cluster_check import find_open_cluster, listening_addresses
from services.ports import free_port
from services.ray_cluster import BIN
from support.waiting import wait_until


@contextmanager
def head(*options: str, **environ: str) -> Iterator[int]:
    """Run a Ray head without a token; gives the port of its control store."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        command = [f"{BIN}/ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
        command += ["--disable-usage-stats", f"--temp-dir={temp}", *options]
        process = subprocess.Popen(
            command,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", **environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: find_open_cluster(f"127.0.0.1:{port}"), 180, "the head", poll_s=0.2)
            yield port
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_without_a_token_fails_the_check_on_all_interfaces_and_warns_on_loopback() -> None:
    dashboard = free_port()
    address = f"http://127.0.0.1:{dashboard}"
    with head("--dashboard-host=0.0.0.0", f"--dashboard-port={dashboard}") as port:
        wait_until(lambda: find_open_cluster(address), 180, "the dashboard", poll_s=0.2)
        for environ in (
            {"RAY_ADDRESS": f"127.0.0.1:{port}"},
            {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
            {"RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"},
        ):
            check = check_ray_authentication(environ)
            assert check.status == "fail", (environ, check)
            assert "requires no token, and other machines reach it at" in check.found
            assert "RAY_AUTH_MODE=token" in check.remedy
    with head("--include-dashboard=false", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0") as port:
        check = check_ray_authentication({"RAY_ADDRESS": f"127.0.0.1:{port}"})
        assert check.status == "warn"
        assert check.found == f"127.0.0.1:{port} requires no token; only this machine reaches it"


@pytest.mark.ray
def test_a_head_on_loopback_is_reached_although_its_variable_is_not_set_here() -> None:
    code = """if True:
        import ray
        from orchestrator.cluster.ray_session import ray_session
        with ray_session("-"):
            print(ray.cluster_resources()["CPU"])
    """
    options = ("--include-dashboard=false", "--node-ip-address=127.0.0.1")
    with head(*options, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0") as port:
        environ = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


@pytest.mark.parametrize(
    ("bound", "listed"), [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), ("::", ["::"])]
)
def test_the_addresses_of_a_listening_port_are_read_from_the_kernel(
    bound: str, listed: list[str]
) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as server:
        port = server.getsockname()[1]
        assert listening_addresses(port) == listed
    wait_until(lambda: listening_addresses(port) == [], 10, "the kernel", poll_s=0.1)


def test_an_address_without_a_cluster_is_not_an_open_cluster(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", "ray://host:port", "h:x"):
        assert find_open_cluster(address) is None
