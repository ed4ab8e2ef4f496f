"""Run a job and inject faults into it, one after another."""

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import TextIO

from orchestrator.errors import TrainingFailed
from orchestrator.faults.kinds import FAULTS, STOPPED, FaultKind, FaultyRun
from orchestrator.faults.run_processes import RunProcesses
from orchestrator.faults.servers import Servers
from orchestrator.record_reader import DamagedRecord
from orchestrator.runs.checkpoint_manifest import parse_manifest
from orchestrator.storage.base import NotFound, Storage

POLL_S = 0.2
"""Listing the storage more often costs a fifth of a core, which the run would have used."""
STATE_FILE = "state.json"
CHECKPOINT_TIMEOUT_S = 300.0
"""Longest wait for the next checkpoint, or for the driver's end."""
SETTLE_S = 15.0
"""A fault of Ray that has not reached the workers or the driver by then never will."""


def draw_faults(count: int, seed: int) -> list[str]:
    """Draw ``count`` names of faults; each kind comes once before any is repeated."""
    kinds = list(FAULTS)
    rng = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        names += rng.sample(kinds, len(kinds))
    return names[:count]


@dataclass(frozen=True)
class Recovery:
    """What a fault led to."""

    fault: str
    images_seen: int
    """In the newest checkpoint before the fault."""
    seconds: float
    """Until the next checkpoint."""
    new_workers: bool
    exit_code: int | None
    """Of the driver, if it ended and was started again."""


@dataclass
class FaultInjector:
    """Runs a job to its end, and injects each of ``faults`` after a new checkpoint."""

    command: Sequence[str]
    """Command line of the driver, without --resume."""
    storage: Storage
    """Storage of the run's checkpoints; no other run may use it."""
    environ: Mapping[str, str]
    faults: Sequence[tuple[str, FaultKind]]
    log: Callable[[str], None]
    servers: Servers | None = None
    recoveries: list[Recovery] = field(default_factory=list)
    sums: dict[int, dict[str, str]] = field(default_factory=dict)
    """By images seen: sha256 of the files of each checkpoint that was seen, see sum_of_state."""
    _seen: set[str] = field(default_factory=set)
    _driver: "subprocess.Popen[bytes]" = field(init=False)
    _output: TextIO = field(init=False)

    def run(self) -> str:
        """Return what the drivers wrote to stderr.

        Raises:
            TrainingFailed: the run did not finish, or ended before the last fault.
        """
        with tempfile.TemporaryFile("a+") as self._output:
            self._start()
            try:
                self._wait(lambda: self._newest() is not None)
                for number, (name, kind) in enumerate(self.faults, 1):
                    newest = self._newest()
                    self.log(f"{number} of {len(self.faults)}: {name}; newest checkpoint: {newest}")
                    self._inject(name, kind)
                self._finish()
                return self._read()
            finally:
                self._driver.kill()
                self._driver.wait()

    def _inject(self, name: str, kind: FaultKind) -> None:
        """Inject a fault; start the driver again if it ends; wait for the next checkpoint."""
        processes = RunProcesses(self._driver.pid)
        start, newest, before = time.monotonic(), self._newest(), set(processes.workers())
        kind.inject(FaultyRun(processes, self.storage, self.servers))
        exit_code = None
        if kind.may_survive:
            self._settle(before)
        if kind.exits and not kind.may_survive:
            self._wait(self._has_ended, may_end=True, otherwise="the driver did not end")
        if kind.exits and (exit_code := self._driver.poll()) is not None:
            if exit_code not in kind.exits:
                expected = " or ".join(map(str, kind.exits))
                raise TrainingFailed(
                    f"after {name!r} the driver ended with exit code {exit_code}, not {expected}:\n"
                    f"{self._read()}"
                )
            self._start(resume=exit_code == STOPPED)
        needs_new = exit_code is not None or (kind.new_workers and not kind.may_survive)
        self._wait(lambda: not needs_new or self._has_other_workers(before))
        after = self._newest() or ""
        self._wait(lambda: (self._newest() or "") > after)
        seconds, replaced = time.monotonic() - start, self._has_other_workers(before)
        images = int(newest.partition("-")[0]) if newest else 0
        self.recoveries.append(Recovery(name, images, seconds, replaced, exit_code))

    def _settle(self, before: set[int]) -> None:
        """Wait until the driver has ended, new workers train, or nothing happens any more."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not self._has_ended():
            alive = set(RunProcesses(self._driver.pid).workers())
            if before - alive:  # the workers or all of Ray are lost: see what becomes of that
                self._wait(
                    lambda: self._has_ended() or self._has_other_workers(before),
                    may_end=True,
                )
                return
            time.sleep(POLL_S)

    def _has_other_workers(self, before: set[int]) -> bool:
        workers = RunProcesses(self._driver.pid).workers()
        return bool(workers) and before.isdisjoint(workers)

    def _start(self, *, resume: bool = False) -> None:
        """Start the driver; it resumes a run by itself unless that was stopped by the user."""
        environ = {k: v for k, v in self.environ.items() if k != "RAY_ADDRESS"}
        command, output = [*self.command, *(["--resume"] if resume else [])], self._output.fileno()
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
        self._newest()
        if code := self._driver.returncode:
            raise TrainingFailed(f"the run ended with exit code {code}:\n{self._read()}")

    def _has_ended(self) -> bool:
        return self._driver.poll() is not None

    def _wait(
        self,
        condition: Callable[[], bool],
        *,
        may_end: bool = False,
        otherwise: str = "the run did not recover",
    ) -> None:
        """Wait for ``condition``; without ``may_end`` the driver must live meanwhile."""
        deadline = time.monotonic() + CHECKPOINT_TIMEOUT_S
        while not condition():
            if not may_end and (code := self._driver.poll()) is not None:
                if code == 0:
                    raise TrainingFailed(
                        f"the run ended after {len(self.recoveries)} of {len(self.faults)} faults; "
                        "give it more --steps"
                    )
                raise TrainingFailed(f"the driver ended with {_describe(code)}:\n{self._read()}")
            if time.monotonic() > deadline:
                limit = f"{otherwise} within {CHECKPOINT_TIMEOUT_S:.0f} s"
                raise TrainingFailed(f"{limit}:\n{self._read()}")
            time.sleep(POLL_S)

    def _read(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def _newest(self) -> str | None:
        """Name of the newest checkpoint; note the sums of all that are new."""
        found = {}
        for key in self.storage.list():
            if key.endswith("/manifest.json"):
                found[key.split("/")[-2]] = key
        for name in found.keys() - self._seen:
            self._seen.add(name)
            with suppress(NotFound, DamagedRecord):  # it may be deleted meanwhile
                content = self.storage.get(found[name])
                folder = found[name].rpartition("/")[0]
                manifest = parse_manifest(content, folder, {})
                sums = {file: entry.sha256 for file, entry in manifest.files.items()}
                state = self.storage.get(f"{folder}/{STATE_FILE}")
                self.sums[manifest.images_seen] = sums | {STATE_FILE: sum_of_state(state)}
        return max(found, default=None)


def sum_of_state(content: bytes) -> str:
    """Return the sha256 of a checkpoint's state.json without ``eval_pending``.

    A run that is stopped at a step with a checkpoint leaves the evaluation to whoever resumes it:
    the training is the same.
    """
    with suppress(ValueError, AttributeError, TypeError):  # a fault may have damaged it
        values = json.loads(content)
        values.pop("eval_pending", None)
        content = json.dumps(values, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def run_command(job: Path, overrides: Sequence[str]) -> list[str]:
    """Command line of the driver."""
    options = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "orchestrator", "run", str(job), *options]


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else Signals(-code).name
