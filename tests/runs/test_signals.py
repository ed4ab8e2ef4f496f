"""Signals that ask a run to stop, also from a terminal that is closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.runs.signals import StopRequest

LOOP = """
import pathlib, sys, time
from orchestrator.console import log_info
from orchestrator.runs.signals import StopRequest
stop = StopRequest()
with stop.handle_signals():
    log_info("started")
    for step in range(400):
        if stop.requested:
            break
        time.sleep(0.05)
    time.sleep(0.2)
    log_info("saving")
    print("saving", flush=True)
    pathlib.Path("saved").write_text(str(stop.requested))
sys.exit(130)
"""


def test_a_closed_terminal_stops_a_run_which_saves(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", LOOP],
        cwd=tmp_path,
        preexec_fn=lambda: os.login_tty(terminal),  # noqa: PLW1509 - it needs the new session
    )
    os.close(terminal)
    assert b"started" in os.read(controller, 100)
    os.close(controller)
    assert run.wait(20) == 130
    assert (tmp_path / "saved").read_text() == "True"


def test_several_hangups_do_not_interrupt_the_saving(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", LOOP], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    assert run.stderr.readline() == "started\n"
    for _ in range(3):
        run.send_signal(signal.SIGHUP)
    assert run.stderr.read() == "saving\n"
    assert run.wait(20) == 130
    assert (tmp_path / "saved").read_text() == "True"


def test_a_run_under_nohup_goes_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.handle_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL])
def test_sigquit_ends_a_run_at_once_as_sigkill_does(tmp_path: Path, number: signal.Signals) -> None:
    run = subprocess.Popen(
        ["sh", "-c", f'ulimit -c 0; exec "{sys.executable}" -c "$0"', LOOP],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        # A shell without job control starts its background jobs with SIGQUIT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGQUIT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    assert run.stderr is not None
    assert run.stderr.readline() == "started\n"
    run.send_signal(number)
    assert run.wait(20) == -number
    assert not (tmp_path / "saved").exists()
    run.stderr.close()
