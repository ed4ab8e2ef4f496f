"""A job file that cannot be run as a command is told from one that can."""

import os
import shlex
import subprocess
import threading
from pathlib import Path

import pytest

from orchestrator.config import read_file
from orchestrator.config.job_command import FIRST_LINE, command_note
from orchestrator.config.load import load_job
from orchestrator.errors import JobFileError

JOB = """\
name: cats
model: {name: pix2pix, image_size: 64, filters: 8, discriminator_filters: 8, receptive_field: 34}
data: {train: data/train}
train: {batch_size: 4, epochs: 3}
"""
MARK = b"\xef\xbb\xbf"


def write(path: Path, content: bytes, mode: int = 0o755) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def shell(path: Path, tools: Path) -> int:
    """The exit code of the file as a command of a shell, with an `orchestrator run` that says 7."""
    write(tools / "orchestrator", b'#!/bin/sh\n[ "$1" = run ] && exit 7\n')
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["sh", "-c", shlex.quote(str(path))]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


CASES: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "right": (f"{FIRST_LINE}\n{JOB}".encode(), 0o755, ()),
    "windows line ends": (f"{FIRST_LINE}\r\n{JOB}".encode(), 0o755, ()),
    "a mark": (MARK + f"{FIRST_LINE}\n{JOB}".encode(), 0o755, ("byte-order mark",)),
    "no first line": (JOB.encode(), 0o755, ("no first line `#!/usr/bin/env -S orch",)),
    "env without -S": (
        f"#!/usr/bin/env orchestrator run\n{JOB}".encode(),
        0o755,
        ("no first line",),
    ),
    "another program": (
        f"#!/usr/bin/env -S myorchestrator run\n{JOB}".encode(),
        0o755,
        ("no first line",),
    ),
    "a path": (f"#!/usr/bin/env -S A=1 TOOLS/orchestrator run\n{JOB}".encode(), 0o755, ()),
    "a path without env": (f"#!TOOLS/orchestrator run \n{JOB}".encode(), 0o755, ()),
    "a path without env, windows line ends": (
        f"#!TOOLS/orchestrator run\r\n{JOB}".encode(),
        0o755,
        ("no first line",),
    ),
    "not executable": (f"{FIRST_LINE}\n{JOB}".encode(), 0o644, ("not executable", "chmod +x ")),
    "nothing": (MARK + JOB.encode(), 0o644, ("byte-order mark", "no first line", "not executable")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_note_is_as_a_shell_runs_the_file(case: str, tmp_path: Path) -> None:
    content, mode, problems = CASES[case]
    content = content.replace(b"TOOLS", str(tmp_path).encode())
    path = write(tmp_path / "my job.yaml", content, mode)
    load_job(path, environ={})
    note = command_note(path)
    assert (shell(path, tmp_path) == 7) == (note is None)
    for problem in problems:
        assert note
        assert problem in note
    if note:
        assert f"orchestrator submit '{path}'" in note


def test_a_command_in_this_folder_needs_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("x.yaml"), JOB.encode())
    note = command_note(Path("x.yaml"))
    assert note
    assert "`ray job submit -- ./x.yaml`" in note


def test_a_pipe_and_a_missing_file_have_no_note(tmp_path: Path) -> None:
    assert command_note(Path("/dev/null")) is None
    assert command_note(tmp_path / "none.yaml") is None
    os.mkfifo(tmp_path / "pipe.yaml")  # to open it again would wait for another writer forever
    assert command_note(tmp_path / "pipe.yaml") is None


def test_a_job_from_a_pipe_is_read_and_one_that_nobody_writes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_file, "PIPE_S", 1)
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(JobFileError, match=r"is a pipe, and nothing came in 1 s; give a file"):
        load_job(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(JOB,))
    writer.start()
    piped = load_job(pipe)
    writer.join()
    plain = write(tmp_path / "plain.yaml", JOB.encode())
    assert piped.render() == load_job(plain).render()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_job_in_another_unicode_is_refused_clearly(encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", JOB.encode(encoding))
    with pytest.raises(JobFileError, match=r"is UTF-16 or UTF-32 .*; save the file as UTF-8"):
        load_job(path)


def test_a_byte_order_mark_does_not_change_the_job(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.yaml", tmp_path / "marked.yaml"
    plain.write_bytes(JOB.encode())
    marked.write_bytes(MARK + JOB.encode())
    assert load_job(marked).render() == load_job(plain).render()
