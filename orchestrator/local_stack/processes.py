"""Processes that outlive the command that started them, and are never mistaken for others."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "ORCHESTRATOR_STACK"
"""In the environment of each process that a stack has started: the stack's folder."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """The leader of a session, told from a later process with the same number.

    Process ids are used again: after a reboot at once, else after some thousands of others.
    """

    pid: int
    started: int
    """When, in clock ticks after the machine started."""
    boot: str
    """Which start of the machine that was."""

    def runs(self) -> bool:
        """Whether the process is there and is the one that was started."""
        return self.boot == _boot() and _started(self.pid) == self.started

    def group(self, mark: str) -> list[int]:
        """The processes of its session that are alive, also when the leader is gone.

        ``mark`` is the value of MARK in their environment.
        """
        if self.boot != _boot() or _started(self.pid) not in (None, self.started):
            return []
        found = [pid for pid in _pids() if _session(pid) == self.pid and _started(pid)]
        return found if self.runs() or any(_marked(pid, mark) for pid in found) else []

    def stop(self, mark: str, patience_s: float) -> None:
        """Ask the session to end, and kill it if it has not after ``patience_s`` seconds."""
        # A process may be forked between the look and the signal: so look again, and again.
        for number, seconds in ((signal.SIGTERM, patience_s), *[(signal.SIGKILL, 1.0)] * 5):
            for pid in self.group(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.group(mark):
                time.sleep(0.05)


def start(command: Sequence[str], *, cwd: Path, environ: Mapping[str, str], log: Path) -> Process:
    """Start ``command`` in a session of its own, with its output appended to ``log``.

    Raises:
        OSError: it cannot be started.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Process(process.pid, _started(process.pid) or 0, _boot())


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, or None if it is gone or a zombie."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else fields


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
