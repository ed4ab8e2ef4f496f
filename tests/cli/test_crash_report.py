"""Errors that no code foresaw: one line, the documented exit code, and no traceback."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import app
from orchestrator.cli.crash_report import EXIT_BUG, environment_problem

BUG = """\
import sys
from orchestrator.cli import app
def broken(*_):
    raise KeyError("postgresql://anna:s3cret@db/mlflow")
app.app = broken
app.main()
"""


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail() -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_bug_is_one_line_and_a_file_without_secrets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUG], capture_output=True, text=True, check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    (file,) = tmp_path.glob("orchestrator-traceback-*.txt")
    assert done.returncode == EXIT_BUG == 70
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this is a bug in orchestrator: KeyError:")
    assert str(file) in line
    assert "Traceback (most recent call last)" in file.read_text()
    assert "s3cret" not in file.read_text() + line


def test_a_bug_without_a_writable_folder_names_the_line_of_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    assert fail_with(AssertionError("impossible"), monkeypatch) == EXIT_BUG
    assert "test_crash_report.py:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "grant this user access"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), "not read-only"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (MemoryError(), "out of memory"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []"), "TMPDIR"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "free up space"),
    ],
)  # fmt: skip
def test_an_error_of_the_machine_is_exit_3_with_its_remedy(
    error: Exception,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fail_with(error, monkeypatch) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_missing_file_is_a_bug_unless_the_current_folder_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert environment_problem(missing) is None
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert "current folder was deleted" in str(environment_problem(missing))
    monkeypatch.chdir(tmp_path)


def test_an_ascii_terminal_shows_other_characters_escaped(tmp_path: Path) -> None:
    job = tmp_path / "fehlt-ä.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "validate", str(job)],
        capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 2
    assert b"fehlt-" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    command = [sys.executable, "-m", "orchestrator", "schema"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = io.TextIOWrapper(process.stderr).read()
    assert process.wait() == 141
    assert error == ""
