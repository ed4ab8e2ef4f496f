"""A small process beside the driver: it writes that the run was killed if the driver cannot.

The driver holds the only end of a pipe to it. An end of file without the word that all is over
means that the driver died: by SIGKILL, or for want of memory. The monitor imports nothing that is
large before that. It is no child of the driver and in no group of it: Ray, which stops a job, kills
the driver's children and its process group.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.tracking import RunRef

OVER = "over"
STARTS_WITHIN_S = 30
LONGER_S = 120
"""How much longer than the run's patience a monitor may live once the driver is dead."""


@contextlib.contextmanager
def monitored(run: "RunRef") -> Iterator[None]:
    """Should this process die within the block, ``run`` becomes KILLED.

    The same happens where the block is left by a Ctrl-C, a stop or a signal, unless the run's end
    was written by then: whoever stops a job may not wait for that.
    """
    from orchestrator.errors import Stopped

    pipe = _start(run)
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        _end(pipe, "")
        raise
    except BaseException:
        _end(pipe, OVER)
        raise
    _end(pipe, OVER)


def _start(run: "RunRef") -> int | None:
    """A monitor's process; gives the pipe to it, or None with a warning if there can be none."""
    from orchestrator.tracking import THIS_DRIVER
    from orchestrator.tracking.client import warn

    root = str(Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    reading, writing = os.pipe()
    try:
        # Not in the command nor in the environment, which others can read: there is a password.
        os.write(writing, json.dumps({"run": asdict(run), "driver": THIS_DRIVER}).encode() + b"\n")
        subprocess.run(
            [sys.executable, "-m", "orchestrator.runs.watchdog"],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths},
            timeout=STARTS_WITHIN_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        _end(writing, OVER)  # it may have started late
        warn(f"nobody will notice if this process is killed, for no monitor could start: {error}")
        return None
    finally:
        os.close(reading)
    return writing


def _end(pipe: int | None, word: str) -> None:
    if pipe is None:
        return
    with contextlib.suppress(OSError):  # somebody ended the monitor
        os.write(pipe, word.encode())
    os.close(pipe)


def main() -> None:
    """Wait for the end of the driver whose run standard input tells, in a process of its own."""
    if os.fork():
        os._exit(0)  # the monitor becomes the child of init
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the driver, which tells how it ended
    given = json.loads(sys.stdin.readline())
    if sys.stdin.read() == OVER:
        return
    signal.alarm(int(given["run"]["retry_timeout_s"]) + LONGER_S)
    from orchestrator.tracking import RunRef, kill_lost_run

    kill_lost_run(RunRef(**given["run"]), given["driver"])


if __name__ == "__main__":
    main()
