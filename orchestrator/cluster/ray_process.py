"""Run the part of a driver that is connected to Ray in a process of its own.

Ray's library ends its process without an exception when this node's raylet is gone or the GCS does
not answer. A driver has to outlive that: it still writes the run's status, gives up its lease and
says what happened. So it does not import Ray. It starts a child process (ray_process_child.py),
which connects to Ray, sends progress and messages over a socket, and is killed with all that it
has started.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Self

import psutil

from orchestrator.config.job import Job
from orchestrator.errors import Stopped, TryAgain
from orchestrator.runs.driver import local_gpus
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.status import SweepStatus
from orchestrator.sweeps.store import SweepStore
from orchestrator.sweeps.trial_runner import TrialTask
from orchestrator.training.loop import Outcome

POLL_S = 0.2
CLOSE_TIMEOUT_S = 30.0
"""Time limit for the process to disconnect from Ray in good order."""
KILL_TIMEOUT_S = 10.0
"""A process that waits for a dead network file system does not end before it answers."""
_START = (
    "import sys; number, *sys.path = sys.argv[1:]; "
    "from orchestrator.cluster.ray_process_child import serve; serve(int(number))"
)


_ENDED = "it ended the process that was connected to it"


class _Lost(Exception):
    """The process, or its cluster, is lost; the reason."""


class _RemoteTraceback(Exception):
    """Traceback of an error in the process that is connected to Ray; the error's cause."""


class RayProcess:
    """Process that is connected to Ray, as long as the with block of this object.

    If the process or its cluster is lost, the call in progress raises TryAgain.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is None:
            return
        with contextlib.suppress(EOFError, OSError):
            deadline = time.monotonic() + CLOSE_TIMEOUT_S
            self._connection.send(None)
            while self._connection.poll(max(0, deadline - time.monotonic())):
                self._connection.recv()
        self._kill()

    def _kill(self) -> None:
        """Kill the process, and the cluster that it has started."""
        assert self._process is not None
        _kill_session(self._process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # no earlier: now another session may get this number
        self._connection.close()
        self._process = None

    @contextlib.contextmanager
    def gpus(self, job: Job) -> Iterator[int]:
        """Give the number of GPUs that ``job`` may use; see ray_session.cluster_gpus."""
        self._start()
        if os.environ.get("RAY_ADDRESS"):
            yield self._call("ray_session.cluster_gpus", job)
            return
        with local_gpus(job) as num_gpus:
            yield num_gpus

    def train(self, setup: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        """Train with ``ray_trainer.train_on_ray``; see there."""
        outcome: Outcome = self._call("ray_trainer.train_on_ray", setup, show=show, stop=stop)
        return outcome

    def run_trials(
        self,
        job: Job,
        store: SweepStore,
        make_task: Callable[[Trial], TrialTask],
        show: Callable[[SweepStatus], None],
        stop: StopRequest,
    ) -> tuple[Sweep, bool]:
        """Run the trials of a sweep with ``tune_runner.run_trials``; see there."""
        name, arguments = "tune_runner.run_trials", (job, store, make_task)
        ended: tuple[Sweep, bool] = self._call(name, *arguments, show=show, stop=stop)
        return ended

    def _start(self) -> None:
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                # Ray's own messages, of pages; what a user needs comes over the socket.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # the driver handles the terminal's signals
            )
        self._connection = Connection(ours.detach())

    def _call(
        self,
        name: str,
        *arguments: Any,
        show: Callable[[Any], None] | None = None,
        stop: StopRequest | None = None,
    ) -> Any:
        """Call a function of the package cluster in the process; ``show`` gets its reports."""
        self._start()
        stop = stop or StopRequest()
        try:
            self._send((name, arguments, show is not None))
            kind, *content = self._wait_for_answer(show, stop)
        except BaseException as error:
            self._kill()  # before the run's status is written: its workers end with it
            if not isinstance(error, _Lost):
                raise
            if stop.requested:
                raise Stopped(f"stopped; meanwhile the Ray cluster was lost: {error}") from error
            raise TryAgain(
                f"the Ray cluster was lost: {error}; the same command goes on from the newest "
                "checkpoint"
            ) from error
        if kind == "error":
            raise content[0] from _RemoteTraceback(content[1])
        return content[0]

    def _wait_for_answer(self, show: Callable[[Any], None] | None, stop: StopRequest) -> Any:
        is_stopping = False
        while True:
            if stop.requested and not is_stopping:
                self._send("stop")
                is_stopping = True
            if (message := self._receive()) is None:
                continue
            kind, *content = message
            if kind == "lost":
                raise _Lost(content[0])
            if kind == "stderr":
                sys.stderr.write(content[0])
                sys.stderr.flush()
            elif kind == "report" and show is not None:
                show(content[0])
            else:
                return message

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise _Lost(_ENDED) from error

    def _receive(self) -> Any:
        """Return the next message; None if there is none for a moment."""
        try:
            return self._connection.recv() if self._connection.poll(POLL_S) else None
        except (EOFError, OSError) as error:
            raise _Lost(_ENDED) from error


def _kill_session(number: int) -> None:
    """Kill all processes of a session; a private cluster's processes are in that of its driver."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        found = [pid for pid in psutil.pids() if _is_in_session(pid, number)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _is_in_session(pid: int, number: int) -> bool:
    try:
        return os.getsid(pid) == number and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
