"""Retry a call through transient faults, with exponential backoff."""

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

Result = TypeVar("Result")


def retry(
    call: Callable[[], Result],
    *,
    is_transient: Callable[[BaseException], bool],
    timeout_s: float,
    first_pause_s: float,
    longest_pause_s: float,
    on_first_failure: Callable[[BaseException], None] = lambda error: None,
) -> Result:
    """Return ``call()``, repeated while it raises an error that ``is_transient`` accepts.

    Args:
        timeout_s: no attempt starts later than this after the first failure.
        first_pause_s: pause before the second attempt; each further pause is twice as long, up to
            ``longest_pause_s``.
        on_first_failure: called with the error before the first pause.

    Raises:
        Exception: what ``call`` raised last, once it is not transient or the timeout is over.
    """
    first_failure: list[float] = []

    def is_too_late(state: tenacity.RetryCallState) -> bool:
        if not first_failure:
            first_failure.append(time.monotonic())
        return time.monotonic() + state.upcoming_sleep > first_failure[0] + timeout_s

    def before_pause(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1 and error is not None:
            on_first_failure(error)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_exponential(multiplier=first_pause_s, max=longest_pause_s),
        stop=is_too_late,
        before_sleep=before_pause,
        reraise=True,
    )(call)
