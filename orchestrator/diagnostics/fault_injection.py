"""Run a job and inject faults into its processes, one after another."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import psutil

from orchestrator.errors import TrainingFailed
from orchestrator.storage.base import Storage

POLL_S = 0.05
CHECKPOINT_TIMEOUT_S = 300.0
"""Longest wait for the next checkpoint, or for the driver's end."""


@dataclass(frozen=True)
class RunProcesses:
    """Processes of a run whose driver started its own Ray cluster on this machine."""

    driver: int
    """Process id."""

    def named(self, title: str) -> list[int]:
        """Descendants of the driver whose command line starts with ``title``, lowest id first."""
        try:
            descendants = psutil.Process(self.driver).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return sorted(p.pid for p in descendants if _command_line(p).startswith(title))

    def workers(self) -> list[int]:
        """Training processes, rank 0 first: it is the one that writes the spool."""
        return sorted(self.named("ray::RayTrainWorker"), key=lambda pid: not _writes_spool(pid))

    def controller(self) -> list[int]:
        """Ray Train's controller."""
        return self.named("ray::TrainController")


Fault = Callable[[RunProcesses], None]


def _signal_worker(number: signal.Signals, index: int) -> Fault:
    return lambda processes: os.kill(processes.workers()[index], number)


FAULTS: Mapping[str, Fault] = {
    "worker killed": _signal_worker(signal.SIGKILL, -1),
    "worker crashed": _signal_worker(signal.SIGSEGV, -1),
    "worker suspended": _signal_worker(signal.SIGSTOP, -1),
    "rank 0 killed": _signal_worker(signal.SIGKILL, 0),
    "controller killed": lambda processes: os.kill(processes.controller()[0], signal.SIGKILL),
    "driver killed": lambda processes: os.kill(processes.driver, signal.SIGKILL),
    "driver terminated": lambda processes: os.kill(processes.driver, signal.SIGTERM),
}
"""Faults that are injected from outside. After one of the driver it is restarted with --resume."""


def draw_faults(count: int, seed: int) -> list[str]:
    """Draw ``count`` names of faults; each kind comes once before any is repeated."""
    rng = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        names += rng.sample(list(FAULTS), len(FAULTS))
    return names[:count]


@dataclass
class FaultInjector:
    """Runs a job to its end, and injects each of ``faults`` after a new checkpoint."""

    command: Sequence[str]
    """Command line of the driver, without --resume."""
    storage: Storage
    """Storage of the run's checkpoints; no other run may use it."""
    environ: Mapping[str, str]
    faults: Sequence[tuple[str, Fault]]
    log: Callable[[str], None]
    recoveries_s: list[float] = field(default_factory=list)
    """Seconds from each fault to the next checkpoint."""
    _driver: "subprocess.Popen[bytes]" = field(init=False)
    _output: TextIO = field(init=False)

    def run(self) -> str:
        """Return what the drivers wrote to stderr.

        Raises:
            TrainingFailed: the run did not finish.
        """
        with tempfile.TemporaryFile("a+") as self._output:
            self._start()
            try:
                self._wait(lambda: self._newest() is not None)
                for name, fault in self.faults:
                    self.log(f"injecting: {name}; newest checkpoint: {self._newest()}")
                    self._inject(name, fault)
                self._finish()
                return self._read()
            finally:
                self._driver.kill()
                self._driver.wait()

    def _inject(self, name: str, fault: Fault) -> None:
        """Inject a fault and wait for new workers and then for a new checkpoint."""
        processes, start = RunProcesses(self._driver.pid), time.monotonic()
        before = set(processes.workers())
        fault(processes)
        if name.startswith("driver"):
            self._wait_for_end()
            self._start()
            processes = RunProcesses(self._driver.pid)
        self._wait(lambda: bool(new := processes.workers()) and before.isdisjoint(new))
        newest = self._newest() or ""
        self._wait(lambda: (self._newest() or "") > newest)
        self.recoveries_s.append(time.monotonic() - start)

    def _start(self) -> None:
        environ = {k: v for k, v in self.environ.items() if k != "RAY_ADDRESS"}
        command, output = [*self.command, "--resume"], self._output.fileno()
        self._driver = subprocess.Popen(command, env=environ, stdout=output, stderr=output)

    def _finish(self) -> None:
        """Wait until the run has ended; it may take any time if it writes checkpoints."""
        newest, deadline = None, 0.0
        while self._driver.poll() is None:
            if (now := self._newest()) != newest:
                newest, deadline = now, time.monotonic() + CHECKPOINT_TIMEOUT_S
            if time.monotonic() > deadline:
                raise TrainingFailed(
                    f"the run wrote no checkpoint for {CHECKPOINT_TIMEOUT_S:.0f} s after {newest} "
                    f"and did not end:\n{self._read()}"
                )
            time.sleep(POLL_S)
        if code := self._driver.returncode:
            raise TrainingFailed(f"the run ended with exit code {code}:\n{self._read()}")

    def _wait_for_end(self) -> None:
        """Wait for the end of a driver that was killed or terminated."""
        try:
            self._driver.wait(CHECKPOINT_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise TrainingFailed(
                f"the driver did not end within {error.timeout:.0f} s:\n{self._read()}"
            ) from error

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + CHECKPOINT_TIMEOUT_S
        while not condition():
            if self._driver.poll() is not None or time.monotonic() > deadline:
                raise TrainingFailed(f"the run did not recover:\n{self._read()}")
            time.sleep(POLL_S)

    def _read(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def _newest(self) -> str | None:
        names = [k.split("/")[-2] for k in self.storage.list() if k.endswith("/manifest.json")]
        return max(names, default=None)


def run_command(job: Path, overrides: Sequence[str]) -> list[str]:
    """Command line of the driver."""
    options = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "orchestrator", "run", str(job), *options]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _writes_spool(pid: int) -> bool:
    try:
        return any(f.path.endswith("/records.jsonl") for f in psutil.Process(pid).open_files())
    except psutil.Error:
        return False
