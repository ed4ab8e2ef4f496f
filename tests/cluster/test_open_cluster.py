"""The doctor and clusters that ask for no token: real Ray heads, asked as anyone could."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.diagnostics.doctor import check_ray_authentication
from orchestrator.diagnostics.open_cluster_check import exposure, listens_on
from services.mlflow_server import free_port
from services.ray_cluster import BIN


@contextmanager
def head(*options: str, **environ: str) -> Iterator[int]:
    """The port of the control store of a Ray head without a token; it ends with the block."""
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
            deadline = time.monotonic() + 180
            while exposure(f"127.0.0.1:{port}") is None:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield port
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_head_on_all_interfaces_without_a_token_is_refused_and_one_on_loopback_is_not() -> None:
    dashboard = free_port()
    address = f"http://127.0.0.1:{dashboard}"
    with head("--dashboard-host=0.0.0.0", f"--dashboard-port={dashboard}") as port:
        deadline = time.monotonic() + 180
        while exposure(address) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        for environ in (
            {"RAY_ADDRESS": f"127.0.0.1:{port}"},
            {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
            {"RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"},
        ):
            check = check_ray_authentication(environ)
            assert check.status == "fail", (environ, check)
            assert "asks for no token and others reach it at" in check.found
            assert "RAY_AUTH_MODE=token" in check.remedy
    with head("--include-dashboard=false", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0") as port:
        check = check_ray_authentication({"RAY_ADDRESS": f"127.0.0.1:{port}"})
        assert check.status == "warn"
        assert check.found == f"127.0.0.1:{port} asks for no token; this machine alone reaches it"


@pytest.mark.parametrize(
    ("bound", "listed"), [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), ("::", ["::"])]
)
def test_where_a_port_is_listened_on_is_read_from_the_kernel(bound: str, listed: list[str]) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as server:
        port = server.getsockname()[1]
        assert listens_on(port) == listed
    assert listens_on(port) == []


def test_nothing_is_known_of_what_is_no_cluster(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", "ray://host:port", "h:x"):
        assert exposure(address) is None
