"""Child process of a driver that is connected to Ray: it makes calls for ray_process.RayProcess."""

import contextlib
import importlib
import io
import os
import pickle
import pkgutil
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from orchestrator.runs.signals import StopRequest


class _Server:
    """The process that is connected to Ray: it makes the calls of its driver."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._calls: queue.Queue[Any] = queue.Queue()
        self._stop = StopRequest()

    def run(self) -> None:
        """Make calls until the driver needs no more; sessions that they open last until then."""
        sys.stderr = _ForwardedText(lambda text: self._send("stderr", text))
        with contextlib.suppress(Exception):  # a call that needs it raises the same error
            importlib.import_module("orchestrator.cluster.ray_trainer")  # takes seconds
        threading.Thread(target=self._receive, name="driver", daemon=True).start()
        with contextlib.ExitStack() as sessions:
            for name, arguments, has_callbacks in iter(self._calls.get, None):
                callbacks = [self._report, self._stop] if has_callbacks else []
                self._send(*self._call(name, (*arguments, *callbacks), sessions))

    def _call(
        self, name: str, arguments: tuple[Any, ...], sessions: contextlib.ExitStack
    ) -> tuple[Any, ...]:
        from orchestrator.cluster.ray_loss import lost_cluster, watch_cluster

        try:
            function = pkgutil.resolve_name(f"orchestrator.cluster.{name}")
            with watch_cluster(lambda reason: self._send("lost", reason)):
                result = function(*arguments)
                if isinstance(result, contextlib.AbstractContextManager):
                    result = sessions.enter_context(result)
                return "result", result
        except BaseException as error:
            if (reason := lost_cluster(error)) is not None:
                return "lost", reason
            return "error", _picklable(error), traceback.format_exc()

    def _receive(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the driver is gone
            if message == "stop":
                self._stop.request()
            else:
                self._calls.put(message)

    def _report(self, report: Any) -> None:
        self._send("report", report)

    def _send(self, kind: str, *content: Any) -> None:
        with self._lock:
            self._connection.send((kind, *content))


class _ForwardedText(io.TextIOBase):
    """Text stream that hands on what is written to it."""

    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__()
        self._send = send

    def write(self, text: str) -> int:
        """Hand ``text`` on."""
        self._send(text)
        return len(text)

    def fileno(self) -> int:
        """Return the file descriptor of the process's own stderr, for libraries in C."""
        return sys.__stderr__.fileno()  # type: ignore[union-attr]


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def serve(number: int) -> None:
    """Make the calls of the driver at the other end of the socket with this file descriptor."""
    os.set_inheritable(number, False)
    _Server(Connection(number)).run()
