"""Faults are injected into a real process that writes checkpoints; how long it may take."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import TrainingFailed
from orchestrator.faults import injection, kinds
from orchestrator.faults.http_proxy import Disturbance
from orchestrator.faults.injection import FaultInjector
from orchestrator.faults.kinds import FAULTS, FaultyRun
from orchestrator.faults.run_processes import RunProcesses
from orchestrator.faults.servers import DisturbedServer
from orchestrator.storage.open import open_storage

DRIVER = """
import pathlib, sys, time
for number in range(int(sys.argv[2])):
    path = pathlib.Path(sys.argv[1], f"run/checkpoints/{number:03}-1/manifest.json")
    path.parent.mkdir(parents=True)
    path.touch()
    time.sleep(0.7)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "CHECKPOINT_TIMEOUT_S", 2.5)


def injector(folder: Path, code: str, num_checkpoints: int, last_s: float) -> FaultInjector:
    command = [sys.executable, "-c", code, str(folder), str(num_checkpoints), str(last_s)]
    return FaultInjector(command, open_storage(str(folder)), os.environ, [], lambda _: None)


def test_a_run_that_writes_checkpoints_may_take_longer_than_the_wait_for_one(
    tmp_path: Path,
) -> None:
    before = time.monotonic()
    injector(tmp_path, DRIVER, 6, 0).run()
    assert time.monotonic() - before > 2.5


def test_a_run_that_writes_no_more_checkpoints_fails_with_the_newest_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="no checkpoint for 2 s after 001-1"):
        injector(tmp_path, DRIVER, 2, 600).run()


def test_a_state_is_the_same_whether_its_evaluation_is_left_to_a_later_process() -> None:
    state = {"images_seen": 40, "optimizers": {"lr": 0.1}, "eval_pending": False}
    sums = {
        injection.sum_of_state(json.dumps(each).encode())
        for each in (state, {**state, "eval_pending": True}, dict(reversed(state.items())))
    }
    assert len(sums) == 1
    other = json.dumps({**state, "optimizers": {"lr": 0.2}}).encode()
    damaged = [other[:-9], other.replace(b'"eval', b'"evil'), b"[3]", b"\xff"]
    assert len(sums | {injection.sum_of_state(each) for each in (other, *damaged)}) == 6


def test_a_driver_that_ignores_its_signal_is_an_error_of_the_run(tmp_path: Path) -> None:
    ignoring = f"import signal; signal.signal({signal.SIGTERM:d}, signal.SIG_IGN)\n{DRIVER}"
    tested = injector(tmp_path, ignoring, 1, 600)
    tested.faults = [("driver terminated", FAULTS["driver terminated"])]
    with pytest.raises(TrainingFailed, match="the driver did not end within 2 s"):
        tested.run()


@pytest.mark.parametrize("name", ["log monitor killed", "head killed", "all workers killed"])
def test_a_fault_that_hits_no_process_is_an_error(tmp_path: Path, name: str) -> None:
    alone = FaultyRun(RunProcesses(os.getpid()), open_storage(str(tmp_path)))
    with pytest.raises(TrainingFailed, match="no fault was injected"):
        FAULTS[name].inject(alone)


def test_a_fault_of_a_server_that_gets_no_request_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kinds, "DISTURBED_TIMEOUT_S", 0.2)
    with pytest.raises(TrainingFailed, match="too few requests within"):
        kinds._disturb(DisturbedServer(1), Disturbance("reset"), lambda request: True)
