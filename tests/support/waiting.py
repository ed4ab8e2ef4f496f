"""Wait for a condition instead of for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(
    condition: Callable[[], Result], timeout_s: float, what: str, poll_s: float = 0.05
) -> Result:
    """Poll ``condition`` until it is true and return what it gave; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(poll_s)
    return found
