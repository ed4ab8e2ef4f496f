"""Call a function every few seconds while something else runs."""

import threading
from collections.abc import Callable
from typing import Self


class Periodic:
    """Calls ``call`` every ``every_s`` seconds, in a daemon thread, within a with block.

    The first call comes at once unless ``delay`` is set. With ``at_end``, one more call is made
    when the block ends. An error in ``call`` ends the thread: ``call`` handles transient ones.
    """

    def __init__(
        self,
        call: Callable[[], None],
        every_s: float,
        *,
        name: str,
        delay: bool = False,
        at_end: bool = False,
        join_timeout_s: float = 5.0,
    ) -> None:
        self._call, self._every_s, self._delay, self._at_end = call, every_s, delay, at_end
        self._join_timeout_s = join_timeout_s
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join(self._join_timeout_s)

    def wake(self) -> None:
        """Make the next call now. A signal handler may do this: it waits for nothing."""
        self._wake.set()

    def _run(self) -> None:
        if self._delay:
            self._wait()
        while not self._closed:
            self._call()
            self._wait()
        if self._at_end:
            self._call()

    def _wait(self) -> None:
        self._wake.wait(self._every_s)
        self._wake.clear()
