"""Watchdog: a small process beside the driver that marks the run as KILLED if the driver dies.

The driver holds the only write end of a pipe to it. If the pipe closes without the final message,
the driver died, by SIGKILL or out of memory. The watchdog imports nothing large before that. It is
no child of the driver and not in its process group, because Ray kills both when it stops a job.
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

DONE = "done"
"""Final message of a driver that needs the watchdog no more."""
EXTRA_LIFETIME_S = 120
"""The watchdog ends this long after the run's retry timeout once the driver is dead."""


@contextlib.contextmanager
def watchdog(run: "RunRef") -> Iterator[None]:
    """Mark ``run`` as KILLED if this process dies within the block.

    The same happens if a Ctrl-C, a stop or a signal ends the block and nobody has written the run's
    status yet, because whoever stops a job may not wait for that.
    """
    from orchestrator.errors import Stopped

    pipe, message = _start(run), DONE
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        message = ""
        raise
    finally:
        _close(pipe, message)


def _start(run: "RunRef") -> int | None:
    """Start the watchdog; return the pipe to it, or None after a warning if that failed."""
    from orchestrator.tracking import DRIVER_ID
    from orchestrator.tracking.client import warn

    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    reading, writing = os.pipe()
    try:
        # Not as an argument or in the environment, which others can read: it may hold a password.
        message = {"run": asdict(run), "driver_id": DRIVER_ID}
        os.write(writing, json.dumps(message).encode() + b"\n")
        subprocess.run(
            [sys.executable, "-m", "orchestrator.runs.watchdog"],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths},
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        _close(writing, DONE)  # it may still start, too late
        warn(f"could not start the watchdog: {error}. MLflow will not show it if the driver dies")
        return None
    finally:
        os.close(reading)
    return writing


def _close(pipe: int | None, message: str) -> None:
    if pipe is None:
        return
    with contextlib.suppress(OSError):  # the watchdog was killed
        os.write(pipe, message.encode())
    os.close(pipe)


def main() -> None:
    """Wait for the end of the driver whose run is on standard input, in a process of its own."""
    if os.fork():
        os._exit(0)  # the watchdog becomes a child of init
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the driver, which writes how it ended
    message = json.loads(sys.stdin.readline())
    if sys.stdin.read() == DONE:
        return
    signal.alarm(int(message["run"]["retry_timeout_s"]) + EXTRA_LIFETIME_S)
    from orchestrator.tracking import RunRef, mark_killed

    mark_killed(RunRef(**message["run"]), message["driver_id"])


if __name__ == "__main__":
    main()
