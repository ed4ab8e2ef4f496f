"""Folder and processes of a stack, without its services; those are in test_whole_stack.py."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.local_stack import control
from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.mlflow_server import MlflowServer
from orchestrator.local_stack.processes import STACK_VARIABLE, Process, start
from orchestrator.local_stack.ray_head import RayHead
from services.scripted_http import other_protocol
from support.waiting import wait_until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    made = StackFolder(tmp_path / "stack")
    made.create()
    return made


def started(tmp_path: Path, code: str, stack: str) -> Process:
    return start(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        environ={**os.environ, STACK_VARIABLE: stack},
        log=tmp_path / "log",
    )


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def printed_number(tmp_path: Path) -> int:
    """Number that the started process prints; it follows the time in the log."""
    lines = wait_until(
        lambda: (tmp_path / "log").read_text().splitlines()[1:], 30, "a line in the log"
    )
    return int(lines[0])


def test_a_process_that_reuses_a_recorded_id_is_never_stopped(tmp_path: Path) -> None:
    ours = started(tmp_path, PARENT, "here")
    same_id = Process(ours.pid, ours.start_s - 1, ours.boot_id)
    other_boot = Process(ours.pid, ours.start_s, "another boot")
    for stale in (same_id, other_boot):
        assert not stale.is_running()
        stale.stop("here", timeout_s=0)
    assert ours.is_running()
    ours.stop("here", timeout_s=10)
    assert not ours.is_running()


def test_children_of_a_killed_leader_are_stopped_and_those_of_other_stacks_are_not(
    tmp_path: Path,
) -> None:
    ours = started(tmp_path, PARENT, "here")
    child = printed_number(tmp_path)
    os.kill(ours.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(ours.pid), 30, "the end of the leader")
    assert not ours.is_running()
    ours.stop("elsewhere", timeout_s=10)
    assert is_alive(child), "the session of another stack"
    ours.stop("here", timeout_s=10)
    assert not is_alive(child)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    )
    ours = started(tmp_path, f"{code}; time.sleep(600)", "here")
    printed_number(tmp_path)
    ours.stop("here", timeout_s=0.2)
    assert not is_alive(ours.pid)


def test_secrets_are_created_once_and_only_their_owner_can_read_them(folder: StackFolder) -> None:
    first = folder.secret("token")
    assert len(first) == 64
    assert first != folder.secret("password")
    again = StackFolder(folder.path)
    again.create()
    assert again.secret("token") == first
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.secret_file("token").stat().st_mode) == 0o600


def test_git_and_ray_ignore_the_folder(tmp_path: Path) -> None:
    """Uses Ray's own selection of the files of a working directory."""
    from ray._private.runtime_env.packaging import _dir_travel

    folder = StackFolder(tmp_path / ".orchestrator/stack")
    folder.create()
    folder.secret("token")
    (tmp_path / "job.yaml").touch()
    seen: list[str] = []
    _dir_travel(tmp_path, [], lambda path: seen.append(path.name), include_gitignore=True)
    assert "job.yaml" in seen
    assert "token" not in seen
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == "?? job.yaml\n"


def test_ports_are_kept_and_one_that_is_in_use_is_replaced(folder: StackFolder) -> None:
    assert folder.choose_ports({"a": 0, "b": 0}) == []
    before = dict(folder.state.ports)
    assert len(set(before.values())) == 2
    assert folder.choose_ports({"a": 0, "b": 0}) == []
    assert folder.state.ports == before
    with socket.create_server(("127.0.0.1", before["a"])):
        assert folder.choose_ports({"a": 0, "b": 0}) == ["a"]
        assert folder.state.ports["a"] != before["a"]
        assert folder.state.ports["b"] == before["b"]
        assert folder.choose_ports({"c": before["a"]}) == []
        assert folder.state.ports["c"] != before["a"]


def test_the_folder_of_ray_is_short_and_private_however_deep_the_stack_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = StackFolder(tmp_path / ("d" * 40) / "stack")
    deep.create()
    ray = deep.ray_folder()
    assert len(str(ray)) <= 40
    assert stat.S_IMODE(ray.parent.stat().st_mode) == 0o700
    assert deep.ray_folder() == ray
    ray.parent.chmod(0o777)
    assert deep.ray_folder() != ray, "other users may have written to it"
    ray.parent.rmdir()
    ray = deep.ray_folder()
    deep.delete()
    assert not ray.parent.exists()
    assert not deep.path.exists()


def test_the_folder_of_ray_is_short_in_bytes_too() -> None:
    folder = StackFolder(Path("/tmp", "ü" * 26))
    assert len(str(folder.path / "ray")) <= 40 < len(os.fsencode(folder.path / "ray"))
    ray = folder.ray_folder()
    assert ray.parent != folder.path
    ray.parent.rmdir()


def test_a_folder_with_other_files_is_rejected_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and not a stack"):
        control.up(tmp_path, tmp_path)
    with pytest.raises(
        EnvironmentProblem, match=r"there is no stack in .*create one with `orchestrator up`"
    ):
        control.down(tmp_path, delete=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_stack_that_was_never_started_is_shown_as_stopped(folder: StackFolder) -> None:
    found = control.status(control.open_stack(folder.path))
    assert [(service.name, service.state, service.pid) for service in found] == [
        ("ray", "stopped", None), ("mlflow", "stopped", None), ("s3", "stopped", None),
    ]  # fmt: skip


def test_a_copied_stack_does_not_touch_the_processes_of_the_original(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)  # so that Ray's folder is outside
    original = StackFolder(deep / "stack")
    original.create()
    process = started(tmp_path, "import time; time.sleep(600)", str(original.path))
    original.state.processes["mlflow"] = asdict(process)
    rays = original.ray_folder()
    original.save()
    shutil.copytree(original.path, deep / "copy")
    assert [each.state for each in control.status(control.open_stack(deep / "copy"))] == [
        "stopped", "stopped", "stopped",
    ]  # fmt: skip
    control.down(deep / "copy", delete=True)
    assert is_alive(process.pid)
    assert rays.parent.is_dir()
    original.path.rename(deep / "moved")
    control.down(deep / "moved", delete=True)
    assert not is_alive(process.pid)
    assert not rays.parent.exists()


@pytest.mark.parametrize("content", [b'{"ports": ', b"\xff\xfe\x00", b"[]", b""])
def test_a_corrupt_state_is_reported_with_a_remedy(folder: StackFolder, content: bytes) -> None:
    (folder.path / "state.json").write_bytes(content)
    with pytest.raises(EnvironmentProblem, match=r"state\.json is damaged: .* move it away"):
        control.open_stack(folder.path)


def test_missing_packages_are_reported_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flask_wtf", None)
    with pytest.raises(EnvironmentProblem) as caught:
        control.up(tmp_path / "stack", tmp_path)
    assert str(caught.value).endswith("not installed: pip install -e '.[stack]'")
    assert "Flask-WTF of mlflow[auth]" in str(caught.value)
    assert not (tmp_path / "stack").exists()


REFUSING = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
HANGING = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
time.sleep(600)
"""


def test_a_port_with_something_else_than_a_web_server_is_unhealthy(folder: StackFolder) -> None:
    with other_protocol() as uri:
        folder.state.ports |= {"ray": int(uri.rpartition(":")[2])}
        problem = RayHead(folder).health_problem()
        assert problem == f"{uri}/api/version does not answer: SSH-2.0-OpenSSH_9.6"
        RayHead(folder).stop_jobs()  # only logs that it could not


@pytest.mark.parametrize(("code", "problem"), [(REFUSING, "refuses"), (HANGING, "does not answer")])
def test_an_unhealthy_running_service_is_kept_and_reported_with_the_command_that_kills_it(
    code: str, problem: str, folder: StackFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(tmp_path, code, str(folder.path))
    folder.state.ports["mlflow"] = printed_number(tmp_path)
    folder.state.processes["mlflow"] = asdict(process)
    folder.secret("mlflow-password")
    folder.save()
    # A refusal is reported at once, whatever the timeout.
    monkeypatch.setattr(control, "RUNNING_HEALTH_TIMEOUT_S", 600 if code == REFUSING else 1)
    try:
        with pytest.raises(
            EnvironmentProblem, match=f"mlflow did not become healthy within .*{problem}"
        ) as caught:
            control.up(folder.path, tmp_path)
        assert f"`kill -9 -- -{process.pid}`, then run orchestrator up" in str(caught.value)
        assert process.is_running()
    finally:
        process.stop(str(folder.path), timeout_s=0)


def test_mlflow_does_not_start_with_a_password_that_its_database_does_not_have(
    folder: StackFolder,
) -> None:
    folder.secret("mlflow-password")
    mlflow = MlflowServer(folder)
    mlflow.configure()
    (folder.path / "mlflow/users.db").touch()
    mlflow.configure()
    mlflow.secret_file.unlink()
    with pytest.raises(EnvironmentProblem, match=r"restore it in .*password, or delete .*db"):
        mlflow.configure()
    assert "mlflow-password is missing" in (mlflow.health_problem() or "")
    assert not mlflow.secret_file.exists()
    (folder.path / "mlflow/users.db").unlink()
    mlflow.configure()
    assert len(mlflow.secret_file.read_text().strip()) == 64


@pytest.mark.parametrize(
    ("module", "safe_path"),
    [("mine.py", ""), ("models/__init__.py", ""), ("random.py", "1"), ("json/__init__.py", "1")],
)
def test_scripts_of_jobs_find_modules_beside_them_unless_those_would_break_ray(
    folder: StackFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    safe_path: str,
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    project = tmp_path / "project"
    (project / module).parent.mkdir(parents=True)
    (project / module).touch()
    folder.state.project = str(project)
    assert RayHead(folder).environ()["PYTHONSAFEPATH"] == safe_path
