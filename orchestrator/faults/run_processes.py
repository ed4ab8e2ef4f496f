"""Processes of a run whose driver started its own Ray cluster on this machine."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from orchestrator.errors import TrainingFailed


@dataclass(frozen=True)
class RunProcesses:
    """Processes of one driver."""

    driver: int
    """Process id."""

    def named(self, title: str) -> list[int]:
        """Descendants of the driver with ``title`` in their program or command, lowest id first."""
        try:
            descendants = psutil.Process(self.driver).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return sorted(p.pid for p in descendants if title in _program(p))

    def workers(self) -> list[int]:
        """Training processes, rank 0 first: it is the one that writes the spool."""
        return sorted(self.named("ray::RayTrainWorker"), key=lambda pid: not _writes_spool(pid))

    def controller(self) -> list[int]:
        """Ray Train's controller."""
        return self.named("ray::TrainController")


def send_signal(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to each of ``pids``.

    Raises TrainingFailed if none of them exists: nothing was injected.
    """
    num_sent = 0
    for pid in pids:
        try:
            os.kill(pid, number)
            num_sent += 1
        except ProcessLookupError:
            continue
    if not num_sent:
        raise TrainingFailed(f"found no process to send {number.name} to: no fault was injected")


def _program(process: psutil.Process) -> str:
    """First words of the command line: arguments may name files of other programs."""
    try:
        return " ".join(process.cmdline()[:4])
    except psutil.Error:
        return ""


def _writes_spool(pid: int) -> bool:
    try:
        return any(f.path.endswith("/records.jsonl") for f in psutil.Process(pid).open_files())
    except psutil.Error:
        return False
