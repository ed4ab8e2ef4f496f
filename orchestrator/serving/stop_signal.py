"""Stop a service: one that is stopped has not failed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set within the block, instead of ending the process.

    Only the main thread gets signals: in another thread nothing sets it.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = [signal.signal(number, lambda *_: stopped.set()) for number in NUMBERS]
    try:
        yield stopped
    finally:
        for number, handler in zip(NUMBERS, before, strict=True):
            signal.signal(number, handler)
