"""Start processes that outlive this command, and stop them without touching any other process."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

STACK_VARIABLE = "ORCHESTRATOR_STACK"
"""Environment variable of each process that a stack has started: the stack's folder."""

POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """Leader of a session, distinguishable from a later process with the same id.

    Process ids are reused: at once after a reboot, otherwise after some thousands of processes.
    """

    pid: int
    start_s: float
    """Start time in seconds after boot, which changes of the system clock do not affect."""
    boot_id: str

    def is_running(self) -> bool:
        """Whether the process is alive, and is the one that was started."""
        return self.boot_id == _boot_id() and _start_s(self.pid) == self.start_s

    def session(self, stack: str) -> list[int]:
        """Find the live processes of its session, also after the leader has ended.

        Args:
            stack: value of ``STACK_VARIABLE`` in their environment.
        """
        if self.boot_id != _boot_id() or _start_s(self.pid) not in (None, self.start_s):
            return []
        members = [pid for pid in psutil.pids() if _session_of(pid) == self.pid]
        pids = [pid for pid in members if _start_s(pid) is not None]
        ours = self.is_running() or any(_belongs_to(pid, stack) for pid in pids)
        return pids if ours else []

    def stop(self, stack: str, timeout_s: float) -> None:
        """Send SIGTERM to the session, and SIGKILL to what is left after ``timeout_s``."""
        # A process may be forked between the listing and the signal, so repeat both.
        for number, seconds in ((signal.SIGTERM, timeout_s), *[(signal.SIGKILL, 1.0)] * 5):
            for pid in self.session(stack):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.session(stack):
                time.sleep(POLL_S)


def start(command: Sequence[str], *, cwd: Path, environ: Mapping[str, str], log: Path) -> Process:
    """Start ``command`` in its own session, with its output appended to ``log``.

    Raises:
        OSError: it cannot be started.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    return Process(process.pid, _start_s(process.pid) or 0.0, _boot_id())


def _boot_id() -> str:
    # psutil.boot_time changes with the system clock, so it does not identify a boot.
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_s(pid: int) -> float | None:
    """Start time in seconds after boot; None if the process has ended, or is a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round(process.create_time() - psutil.boot_time(), 2)
    except psutil.Error:
        return None


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _belongs_to(pid: int, stack: str) -> bool:
    try:
        return psutil.Process(pid).environ().get(STACK_VARIABLE) == stack
    except psutil.Error:
        return False
