"""A real Ray on machines as people have them: it starts, or one line says why not."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

from orchestrator.cluster import ray_session as session
from orchestrator.cluster.ray_refusals import describe_refusal
from orchestrator.cluster.ray_session import ray_session
from orchestrator.diagnostics.ray_address import LOOPBACK_VARIABLE, RayAddress
from orchestrator.errors import DataError, EnvironmentProblem, TryAgain
from services.ports import free_port
from services.ray_cluster import BIN

ROOT = Path(__file__).parents[2]
PROXY = "http://127.0.0.1:9"
"""Nothing listens there."""


SCRIPT = """
import ray
from orchestrator.cluster.ray_session import ray_session
with ray_session("give up", 1):
    one_more = ray.remote(num_cpus=1)(lambda number: number + 1)
    print(ray.get(one_more.remote(1)), ray._private.worker._global_node.get_session_dir_path())
"""


def run(cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run SCRIPT in a new process: Ray keeps tokens and addresses for the rest of one."""
    unset = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", LOOPBACK_VARIABLE)
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=cwd, env={**kept, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_starts_with_a_long_tmpdir_a_dead_proxy_and_a_home_that_is_read_only(
    tmp_path: Path,
) -> None:
    long = tmp_path / ("scratch_of_a_scheduler" * 4)
    long.mkdir()
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy"), PROXY)
    done = run(tmp_path, TMPDIR=str(long), HOME="/proc", **proxies)
    assert done.returncode == 0, done.stderr
    answer, folder = done.stdout.split()
    assert answer == "2"
    assert len(str(Path(folder).parent)) <= 40
    assert not list(long.iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_on_loopback_is_reached_by_its_address_alone(tmp_path: Path) -> None:
    """As with the RAY_ADDRESS of `orchestrator status` alone, without its other variables."""
    port, folder = free_port(), Path("/tmp", f"ray-{secrets.token_hex(4)}")
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats",
        f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0",
        "--max-worker-port=0", f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}",
        "--object-store-memory=100000000",
    ]  # fmt: skip
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environ = {**os.environ, **secret, LOOPBACK_VARIABLE: "0"}
    with (tmp_path / "log").open("w") as log:
        head = subprocess.Popen(
            command, env=environ, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (printed := (tmp_path / "log").read_text()):
            assert head.poll() is None and time.monotonic() < deadline, printed  # noqa: PT018
            time.sleep(0.2)
        done = run(tmp_path, RAY_ADDRESS=f"127.0.0.1:{port}", **secret)
        assert (done.returncode, done.stdout[:2]) == (0, "2 "), done.stderr
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /s/x",
            "set RAY_TMPDIR to a folder with a short path",
        ),
        ("[Errno 28] No space left on device: '/tmp/ray'", "free up space there"),
        ("[Errno 30] Read-only file system: '/tmp/ray'", "set RAY_TMPDIR to a writable"),
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.41.0\n    Python: 3.9.1\n",
            "install the same Python and Ray",
        ),
        ("Token authentication is enabled but no authentication token was found", "RAY_AUTH_MODE"),
        (
            "No node info found matching attributes: '' when trying to resolve node to connect to.",
            "this machine is no node of the cluster",
        ),
        ("The current node timed out during startup. This could happen because", "try again"),
    ],
)
def test_known_words_of_ray_come_with_what_to_do(
    said: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, told = describe_refusal(RuntimeError(said))
    assert "\n" not in line
    assert told.startswith(advice) or advice in told

    def refuse(*_: object, **__: object) -> None:
        raise Exception(said)

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(EnvironmentProblem, match=r"^Ray does not start on this machine: ") as end,
        ray_session("give up", 1),
    ):
        pass
    assert "\n" not in str(end.value)
    assert str(end.value).endswith("; give up")
    assert told in str(end.value)


def test_a_connection_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "require_ray_cluster", lambda environ: RayAddress("gcs", "h", 1))
    monkeypatch.setattr(session, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(session, "NOTICE_S", 0.1)
    monkeypatch.setattr(ray, "init", lambda *_, **__: threading.Event().wait(20))
    monkeypatch.setenv("RAY_ADDRESS", "h:1")
    with (
        pytest.raises(EnvironmentProblem, match=r"no connection within 0.3 s"),
        ray_session("wait"),
    ):
        pass


def test_a_cluster_that_is_lost_is_worth_another_try_and_a_bug_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    lost = ray.exceptions.RaySystemError("the head\nis gone")
    with (
        pytest.raises(TryAgain, match=r"the Ray cluster failed: .*head is gone"),
        ray_session("x", 1),
    ):
        raise lost
    with pytest.raises(DataError), ray_session("x", 1):
        raise DataError("ours")
