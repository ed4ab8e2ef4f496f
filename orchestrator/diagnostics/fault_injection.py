"""A job that is run as a user runs it while faults are done to its processes, one after another."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from orchestrator.errors import TrainingFailed
from orchestrator.storage.base import Storage

POLL_S = 0.05
WAIT_S = 300.0
"""The longest wait for a checkpoint after a fault."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run whose driver started a Ray cluster of its own on this machine."""

    driver: int

    def named(self, title: str) -> list[int]:
        """Descendants of the driver whose title starts so, oldest first."""
        parents: dict[int, int] = {}
        titles: dict[int, bytes] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    parents[int(entry.name)] = _parent(entry)
                    titles[int(entry.name)] = (entry / "cmdline").read_bytes()
        found = (pid for pid, text in titles.items() if text.startswith(title.encode()))
        return sorted(pid for pid in found if self.driver in _ancestors(pid, parents))

    def workers(self) -> list[int]:
        """The training processes, rank 0 first: it is the one that writes the spool."""
        return sorted(self.named("ray::RayTrainWorker"), key=lambda pid: not _writes_spool(pid))

    def controller(self) -> list[int]:
        """Ray Train's controller."""
        return self.named("ray::TrainController")


Fault = Callable[[Processes], None]


def _kill(number: signal.Signals, which: int) -> Fault:
    return lambda processes: os.kill(processes.workers()[which], number)


FAULTS: Mapping[str, Fault] = {
    "worker killed": _kill(signal.SIGKILL, -1),
    "worker crashed": _kill(signal.SIGSEGV, -1),
    "worker stopped": _kill(signal.SIGSTOP, -1),
    "rank 0 killed": _kill(signal.SIGKILL, 0),
    "controller killed": lambda processes: os.kill(processes.controller()[0], signal.SIGKILL),
    "driver killed": lambda processes: os.kill(processes.driver, signal.SIGKILL),
    "driver told to stop": lambda processes: os.kill(processes.driver, signal.SIGTERM),
}
"""What can be done from outside. A driver that is gone is started again with --resume."""


def drawn(count: int, seed: int) -> list[str]:
    """``count`` names of faults, each kind before any comes again, in the order of ``seed``."""
    draw = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        names += draw.sample(list(FAULTS), len(FAULTS))
    return names[:count]


@dataclass
class Punisher:
    """Runs a job to its end, and does each of ``faults`` after a checkpoint of its own."""

    command: Sequence[str]
    """Of the driver, without --resume."""
    storage: Storage
    """Where its checkpoints go, and nobody else's."""
    environ: Mapping[str, str]
    faults: Sequence[tuple[str, Fault]]
    tell: Callable[[str], None]
    recoveries_s: list[float] = field(default_factory=list)
    """From each fault to the next checkpoint."""

    def run(self) -> str:
        """What the drivers wrote to stderr. Raises TrainingFailed if the run did not finish."""
        with tempfile.TemporaryFile("a+") as log:
            driver = self._start(log.fileno())
            try:
                self._wait_for_checkpoint(driver, log, None)
                for name, fault in self.faults:
                    self.tell(f"{name}, with the checkpoint {self._newest()}")
                    before, start = set(Processes(driver.pid).workers()), time.monotonic()
                    fault(Processes(driver.pid))
                    if name.startswith("driver"):
                        driver.wait(60)
                        driver = self._start(log.fileno())
                    self._wait_for_others(driver, log, before)
                    self._wait_for_checkpoint(driver, log, self._newest())
                    self.recoveries_s.append(time.monotonic() - start)
                if driver.wait(WAIT_S):
                    raise TrainingFailed(f"the run ended with {driver.returncode}:\n{_text(log)}")
                return _text(log)
            finally:
                driver.kill()
                driver.wait()

    def _start(self, log: int) -> "subprocess.Popen[bytes]":
        environ = {k: v for k, v in self.environ.items() if k != "RAY_ADDRESS"}
        return subprocess.Popen([*self.command, "--resume"], env=environ, stdout=log, stderr=log)

    def _wait_for_others(
        self, driver: "subprocess.Popen[bytes]", log: TextIO, before: set[int]
    ) -> None:
        """Wait until there are workers and none of them was there before."""
        processes = Processes(driver.pid)
        self._wait(driver, log, lambda: bool(n := processes.workers()) and before.isdisjoint(n))

    def _wait_for_checkpoint(
        self, driver: "subprocess.Popen[bytes]", log: TextIO, before: str | None
    ) -> None:
        """Wait for a checkpoint that is newer than ``before``."""
        self._wait(driver, log, lambda: (self._newest() or "") > (before or ""))

    def _wait(
        self, driver: "subprocess.Popen[bytes]", log: TextIO, done: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            if driver.poll() is not None or time.monotonic() > deadline:
                raise TrainingFailed(f"the run does not go on:\n{_text(log)}")
            time.sleep(POLL_S)

    def _newest(self) -> str | None:
        names = [k.split("/")[-2] for k in self.storage.list() if k.endswith("/manifest.json")]
        return max(names, default=None)


def command_of(job: Path, settings: Sequence[str]) -> list[str]:
    """The driver's command line."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "orchestrator", "run", str(job), *sets]


def _text(log: TextIO) -> str:
    log.seek(0)
    return log.read()


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid in parents:
        yield pid
        pid = parents[pid]


def _writes_spool(pid: int) -> bool:
    with suppress(OSError):
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return any(link.endswith("/records.jsonl") for link in links)
    return False
