"""The stack's folder and processes, without the servers; test_whole_stack.py has those."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.local_stack import control
from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.mlflow_server import MlflowServer
from orchestrator.local_stack.processes import MARK, Process, start

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    made = StackFolder(tmp_path / "stack")
    made.make()
    return made


def started(tmp_path: Path, code: str, mark: str) -> Process:
    return start(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        environ={**os.environ, MARK: mark},
        log=tmp_path / "log",
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def child_of(tmp_path: Path) -> int:
    deadline = time.monotonic() + 30
    while len(lines := (tmp_path / "log").read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(lines[1])


def test_a_process_that_has_got_a_recorded_number_is_never_stopped(tmp_path: Path) -> None:
    ours = started(tmp_path, PARENT, "here")
    same_number = Process(ours.pid, ours.started - 1, ours.boot)
    other_boot = Process(ours.pid, ours.started, "another start of the machine")
    for stale in (same_number, other_boot):
        assert not stale.runs()
        stale.stop("here", patience_s=0)
    assert ours.runs()
    ours.stop("here", patience_s=10)
    assert not ours.runs()


def test_what_a_killed_leader_leaves_behind_is_stopped_and_others_are_not(tmp_path: Path) -> None:
    ours = started(tmp_path, PARENT, "here")
    child = child_of(tmp_path)
    os.kill(ours.pid, signal.SIGKILL)
    while is_alive(ours.pid):
        time.sleep(0.02)
    assert not ours.runs()
    ours.stop("elsewhere", patience_s=10)
    assert is_alive(child), "the session of another stack"
    ours.stop("here", patience_s=10)
    assert not is_alive(child)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    )
    ours = started(tmp_path, f"{code}; time.sleep(600)", "here")
    child_of(tmp_path)
    ours.stop("here", patience_s=0.2)
    assert not is_alive(ours.pid)


def test_secrets_are_made_once_and_readable_for_their_owner_alone(folder: StackFolder) -> None:
    first = folder.secret("token")
    assert len(first) == 64
    assert first != folder.secret("password")
    again = StackFolder(folder.path)
    again.make()
    assert again.secret("token") == first
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.secret_file("token").stat().st_mode) == 0o600


def test_neither_git_nor_ray_takes_anything_of_the_folder_along(tmp_path: Path) -> None:
    """Ray is asked itself what it would upload of a project that has a stack."""
    from ray._private.runtime_env.packaging import _dir_travel

    folder = StackFolder(tmp_path / ".orchestrator/stack")
    folder.make()
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


def test_ports_are_remembered_and_one_that_is_taken_is_replaced(folder: StackFolder) -> None:
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


def test_rays_folder_is_short_and_private_however_deep_the_stack_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = StackFolder(tmp_path / ("d" * 40) / "stack")
    deep.make()
    ray = deep.ray_folder()
    assert len(str(ray)) <= 40
    assert stat.S_IMODE(ray.parent.stat().st_mode) == 0o700
    assert deep.ray_folder() == ray
    ray.parent.chmod(0o777)
    assert deep.ray_folder() != ray, "others may have put something there"
    ray.parent.rmdir()
    ray = deep.ray_folder()
    deep.delete()
    assert not ray.parent.exists()
    assert not deep.path.exists()


def test_a_folder_with_other_things_in_it_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="has files in it that are no stack's"):
        control.up(tmp_path, tmp_path)
    with pytest.raises(EnvironmentProblem, match=r"there is no stack in .*`orchestrator up` makes"):
        control.down(tmp_path, delete=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_stack_that_was_never_started_is_shown_as_stopped(folder: StackFolder) -> None:
    found = control.status(control.opened(folder.path))
    assert [(one.name, one.state, one.pid) for one in found] == [
        ("ray", "stopped", None), ("mlflow", "stopped", None), ("s3", "stopped", None),
    ]  # fmt: skip


def test_a_damaged_state_is_named_with_what_to_do(folder: StackFolder) -> None:
    folder.write("state.json", '{"ports": ')
    with pytest.raises(EnvironmentProblem, match=r"state\.json is damaged .* move it away"):
        control.opened(folder.path)


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flask_wtf", None)
    with pytest.raises(EnvironmentProblem) as caught:
        control.up(tmp_path / "stack", tmp_path)
    assert str(caught.value).endswith("not installed: pip install 'orchestrator[stack]'")
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


@pytest.mark.parametrize(("code", "what"), [(REFUSING, "refuses"), (HANGING, "does not answer")])
def test_a_service_that_runs_and_is_not_well_is_left_running_with_what_ends_it(
    code: str, what: str, folder: StackFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(tmp_path, code, str(folder.path))
    folder.state.ports["mlflow"] = child_of(tmp_path)
    folder.state.processes["mlflow"] = asdict(process)
    folder.secret("mlflow-password")
    folder.save()
    # A refusal is told at once, whatever the patience.
    monkeypatch.setattr(control, "RUNNING_S", 600 if code == REFUSING else 1)
    try:
        with pytest.raises(
            EnvironmentProblem, match=f"mlflow is not well after .*{what}"
        ) as caught:
            control.up(folder.path, tmp_path)
        assert f"`kill -9 -- -{process.pid}`, then orchestrator up" in str(caught.value)
        assert process.runs()
    finally:
        process.stop(str(folder.path), patience_s=0)


def test_mlflow_does_not_start_with_another_password_than_its_users_file_knows(
    folder: StackFolder,
) -> None:
    folder.secret("mlflow-password")
    mlflow = MlflowServer(folder)
    mlflow.prepare()
    (folder.path / "mlflow/users.db").touch()
    mlflow.prepare()
    mlflow.secret_file.unlink()
    with pytest.raises(EnvironmentProblem, match=r"put it back into .*password, or delete .*db"):
        mlflow.prepare()
    assert "mlflow-password is gone" in (mlflow.problem() or "")
    assert not mlflow.secret_file.exists()
    (folder.path / "mlflow/users.db").unlink()
    mlflow.prepare()
    assert len(mlflow.secret_file.read_text().strip()) == 64
