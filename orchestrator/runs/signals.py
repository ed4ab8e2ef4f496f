"""Stop requests: SIGINT (Ctrl-C) or SIGTERM ends a run after its step, a second one at once.

So does SIGHUP, of a terminal that was closed; a second one does nothing more, as a shell and the
kernel both send it. Under nohup it stays ignored. SIGQUIT (Ctrl-\\) ends a process without saving.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.console import log_info

_OUTPUTS = (1, 2)
"""File descriptors of stdout and stderr."""


class StopRequest:
    """Request to stop this process's run."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._terminals: list[int] = []

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self._requested.is_set()

    @contextmanager
    def on_stop(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` at a request within the block, or at once if one was made before.

        The callback of the innermost block is called first.
        """
        self._callbacks.append(callback)
        try:
            if self.requested:
                callback()
            yield
        finally:
            self._callbacks.remove(callback)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle signals within the block, then restore the previous handlers.

        Only the main thread gets signals: in another thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._terminals = [fd for fd in _OUTPUTS if os.isatty(fd)]
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def request(self) -> None:
        """Ask the run to stop; only the first call has an effect."""
        if self.requested:
            return
        self._requested.set()
        for callback in reversed(self._callbacks):
            callback()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_closed_terminals()
            self.request()
            return
        if self.requested:
            raise KeyboardInterrupt
        self.request()
        log_info("stopping after this step; press Ctrl-C again to stop at once")

    def _leave_closed_terminals(self) -> None:
        """Drop all further output to terminals that are gone: writing to them is an error."""
        for fd in self._terminals:
            if not os.isatty(fd):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, fd)
                os.close(nowhere)
