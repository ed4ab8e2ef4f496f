"""A wish to stop: SIGINT (Ctrl-C) or SIGTERM ends a run after the step, the second time at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether someone wants this process's run to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._hearers: list[Callable[[], None]] = []

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked.is_set()

    @contextmanager
    def heard_by(self, hearer: Callable[[], None]) -> Iterator[None]:
        """Call ``hearer`` when the wish comes while the block runs, or at once if it has come.

        Of several, the innermost is called first.
        """
        self._hearers.append(hearer)
        try:
            if self.asked:
                hearer()
            yield
        finally:
            self._hearers.remove(hearer)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals within the block; afterwards they do what they did before.

        Signals are the main thread's: another one hears none.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask(self) -> None:
        """Want the run to stop; the first time counts."""
        if self.asked:
            return
        self._asked.set()
        for hearer in reversed(self._hearers):
            hearer()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.ask()
        say("stopping after this step; once more to stop at once")
