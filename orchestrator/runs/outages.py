"""Wait while a run's storage is out of reach."""

import logging
from collections.abc import Callable

from orchestrator.errors import OrchestratorError
from orchestrator.retry import Result, retry

logger = logging.getLogger(__name__)


def wait_out(call: Callable[[], Result], timeout_s: float) -> Result:
    """Return ``call()``, repeated for ``timeout_s`` while its errors are transient.

    Raises what ``call`` raised last.
    """
    return retry(
        call,
        is_transient=lambda error: isinstance(error, OrchestratorError) and error.retry,
        timeout_s=timeout_s,
        first_pause_s=0.5,
        longest_pause_s=10.0,
        on_first_failure=lambda error: logger.warning(
            "%s; retrying for up to %.0f s", error, timeout_s
        ),
    )
