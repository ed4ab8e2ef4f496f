"""Whatever ends a command: one line, a documented exit code, a traceback only in a file."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from orchestrator.cli import failures
from orchestrator.errors import DataError

ROOT = Path(__file__).parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}


def end_with(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command that raises ``error``: its exit code and its lines."""

    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        failures.run_command(command)
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


def orchestrator(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which ``orchestrator`` is ours, with bash's pipefail."""
    script = f'set -o pipefail; orchestrator() {{ "{sys.executable}" -m orchestrator "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", script + command], env={**ENVIRON, **environ}, cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no images"), 4, "no images"),
        (MemoryError(), 3, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), 3, "/d/x: No space left on"),
        (OSError(errno.EROFS, "Read-only file system", b"/d/x"), 3, "/d/x: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/d"), 3, "/d: Permission denied; gr"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), 3, "x: File exists; remove it or"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), 3, "x/y: Not a directory;"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "Too many open files; raise the limit"),
        (RuntimeError("I/O error: x (os error 28)"), 3, "No space left on device; free up space"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []"), 3,
         "no temporary folder is writable; set TMPDIR"),
        (RuntimeError("Could not determine home directory."), 2, "a path begins with ~NAME"),
        (ConnectionResetError(104, "reset by peer"), 75, "the network or a server failed"),
        (BrokenPipeError(32, "Broken pipe"), 75, "the network or a server failed"),
        (TimeoutError("timed out"), 75, "the network or a server failed"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 70, "this is a bug in orchestrator"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_its_remedy_and_exit_code(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    got, printed = end_with(error, capsys)
    assert (got, printed.count("\n")) == (code, 1)
    assert printed.startswith(f"error: {line}")


def test_ctrl_c_ends_a_command_without_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_with(KeyboardInterrupt(), capsys) == (130, "")


@pytest.mark.parametrize("error", [TypeError("a 's3://k:hunter22@h/b'\nb"), RecursionError()])
def test_a_bug_is_a_line_and_its_traceback_a_file_without_secrets(
    error: Exception,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/not/a/secret")
    monkeypatch.setattr("sys.argv", ["orchestrator", "--set", "x=correct-horse", "/not/a/secret"])
    code, line = end_with(error, capsys)
    bug = f"error: this is a bug in orchestrator: {type(error).__name__}"
    found = re.fullmatch(rf"{bug}.*; its traceback is in (.+); please report it\n", line)
    assert found
    assert (code, "hunter22" in line) == (70, False)
    text = Path(found[1]).read_text()
    assert "Traceback (most recent call last)" in text
    assert "in command" in text, "the frame that raised it"
    assert "x=***" in text
    assert "/not/a/secret" in text
    assert not {"hunter22", "correct-horse"} & set(re.split(r"[^\w-]", text))
    assert Path(found[1]).stat().st_mode & 0o077 == 0


def test_a_bug_without_a_writable_folder_names_the_line_of_the_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    code, line = end_with(KeyError("x"), capsys)
    assert code == 70
    assert "; raised at test_failures.py:" in line


def test_an_answer_of_no_is_a_stop() -> None:
    def command() -> None:
        try:
            raise typer.Abort
        except typer.Abort:
            sys.exit(1)  # as typer does

    with pytest.raises(SystemExit) as end:
        failures.run_command(command)
    assert end.value.code == 130


@pytest.mark.parametrize("command", ["schema", "--help"])
def test_a_reader_that_has_gone_ends_the_command_quietly(command: str) -> None:
    done = orchestrator(f"orchestrator {command} | true")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["schema", "--help"])
def test_a_full_disk_under_the_output_is_a_line(command: str) -> None:
    done = orchestrator(f"orchestrator {command} > /dev/full")
    assert done.returncode == 3
    assert done.stderr == "error: No space left on device; free up space\n"


def test_closed_streams_are_no_bug() -> None:
    assert orchestrator("orchestrator schema <&- >&- 2>&-").returncode == 0


def test_an_ascii_terminal_shows_other_characters_escaped(tmp_path: Path) -> None:
    (tmp_path / "größe.yaml").write_text("name: größe\n")
    command = f"orchestrator validate {tmp_path}/größe.yaml"
    ascii_only = orchestrator(command, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ascii_only.returncode == 2
    assert "gr\\xf6\\xdfe.yaml" in ascii_only.stderr
    not_utf8 = orchestrator("orchestrator validate $'/nowhere/\\xff.yaml'")
    assert not_utf8.returncode == 2
    assert "Traceback" not in not_utf8.stderr


def test_a_current_folder_that_was_deleted_is_named(tmp_path: Path) -> None:
    done = orchestrator(
        f"mkdir {tmp_path}/x; cd {tmp_path}/x; rmdir ../x; orchestrator plan a.yaml"
    )
    assert done.returncode == 3
    assert done.stderr == "error: the current folder was deleted; change to one that exists\n"
