"""What to do after a failure: pure decisions from this failure and the earlier ones."""

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import OrchestratorError


class Cause(enum.StrEnum):
    """Kinds of failures, the most informative first."""

    USER_ERROR = "an error in the job, its data or its environment"
    IMPORT = "a module could not be imported"
    OUT_OF_MEMORY = "a worker ran out of memory"
    PREEMPTED = "a node is being taken away"
    RESIZED = "there is room for more workers"
    HUNG = "a worker was stuck"
    LOST = "a worker was lost"
    ERROR = "a worker failed"
    UNAVAILABLE = "a service was out of reach"
    CONTROLLER = "Ray Train's controller was lost"
    START = "the worker group failed to start"


_DISCONNECTED = "lost its connection to another"
"""The least informative failure: it is the other rank that failed."""
_IMPORT_ERROR = re.compile(r"(ModuleNotFoundError|ImportError)\b")
FREE = (Cause.PREEMPTED, Cause.RESIZED)
"""Causes that do not count towards cluster.max_failures."""


class RestartRequested(Exception):
    """The workers have saved and exit, to be restarted on other nodes or in another number."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True)
class Failure:
    """End of a worker group before the run was finished."""

    cause: Cause
    message: str
    """The error in one line."""
    images_seen: int = 0
    """Progress of the run at its newest report."""


@dataclass(frozen=True)
class Decision:
    """Action after a failure, and its reason."""

    action: Literal["restart", "restart with smaller passes", "stop"]
    reason: str


def num_halvings(history: Sequence[Failure]) -> int:
    """Count how often the images of a pass were halved, or have to be, for lack of memory."""
    return sum(failure.cause is Cause.OUT_OF_MEMORY for failure in history)


def decide(history: Sequence[Failure], max_failures: int, max_halvings: int) -> Decision:
    """Decide what to do after the last failure of ``history``.

    Args:
        history: all failures of the run, oldest first.
        max_halvings: how often the images of a pass can be halved without changing the result; it
            matters only if the last failure is a lack of memory.
    """
    last = history[-1]
    counted = sum(failure.cause not in FREE for failure in history)
    what = f"{last.cause}: {last.message}"
    if last.cause in FREE:
        return Decision("restart", f"{what}; this does not count as a failure")
    hopeless = _why_hopeless(history, max_halvings)
    if counted > max_failures:
        hopeless = hopeless or f"cluster.max_failures is {max_failures}"
    if hopeless is not None:
        return Decision("stop", f"{what}; {hopeless}")
    count = f"failure {counted} of at most {max_failures}"
    if last.cause is Cause.OUT_OF_MEMORY:
        what += "; half as many images per pass"
        return Decision("restart with smaller passes", f"{what}; {count}")
    return Decision("restart", f"{what}; {count}")


def _why_hopeless(history: Sequence[Failure], max_halvings: int) -> str | None:
    """Return why a restart would fail in the same way; None if it might not."""
    last = history[-1]
    if last.cause in (Cause.USER_ERROR, Cause.IMPORT):
        return "a restart cannot fix this"
    if last.cause is Cause.OUT_OF_MEMORY and num_halvings(history) > max_halvings:
        return (
            "it would happen again, and smaller passes are impossible or change the result; use a "
            "smaller train.batch_size, more cluster.workers or more memory"
        )
    # Equal failures: there was no progress in between.
    is_repeated = last.cause is Cause.ERROR and list(history[-2:]) == [last, last]
    return "it failed twice at the same point" if is_repeated else None


def is_import_error(line: str) -> bool:
    """Whether the error line ``NAME: MESSAGE`` says that a module could not be imported."""
    return bool(_IMPORT_ERROR.match(line))


def classify(
    errors: Mapping[int, BaseException], images_seen: int, logged: Mapping[int, str] | None = None
) -> Failure:
    """Reduce the errors of a worker group to one failure.

    The end of one rank breaks the connections of the others: the most informative error counts.

    Args:
        errors: by rank.
        logged: last error line in the log of ranks whose process ended while it started.
    """
    found = [
        _classify_one(rank, error, (logged or {}).get(rank, ""))
        for rank, error in sorted(errors.items())
    ]
    order = list(Cause)
    cause, message = min(found, key=lambda p: (p[1].endswith(_DISCONNECTED), order.index(p[0])))
    return Failure(cause, message, images_seen)


def _classify_one(rank: int, error: BaseException, logged: str) -> tuple[Cause, str]:
    # Ray Train wraps what it found out about a worker that does not answer.
    error = getattr(error, "health_check_failure", error)
    if isinstance(error, RestartRequested):
        return error.cause, f"rank {rank} has saved its last step"
    if isinstance(error, OrchestratorError) and not error.retry:
        return Cause.USER_ERROR, _first_line(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    text = f"rank {rank}: {_first_line(error)}"
    if names & {"OutOfMemoryError", "MemoryError"} or _is_out_of_memory(error):
        return Cause.OUT_OF_MEMORY, text
    if "RayActorError" in names:
        return _classify_lost(rank, error, logged)
    if names & {"DistBackendError", "DistNetworkError"} or _is_connection_lost(error):
        return Cause.LOST, f"rank {rank} {_DISCONNECTED}"
    kinds = ((ImportError, Cause.IMPORT), (OrchestratorError, Cause.UNAVAILABLE))
    return next((cause for kind, cause in kinds if isinstance(error, kind)), Cause.ERROR), text


def _classify_lost(rank: int, error: BaseException, logged: str) -> tuple[Cause, str]:
    """Classify a rank whose process is gone, or that could not be started."""
    if getattr(error, "preempted", False):
        return Cause.PREEMPTED, f"rank {rank} is gone"
    line = last_line(error) if getattr(error, "actor_init_failed", False) else logged
    if is_import_error(line):
        return Cause.IMPORT, f"rank {rank}: {line}"
    return Cause.LOST, f"rank {rank} is gone" + (f": {line}" if line else "")


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch's CPU allocator has no exception of its own; Ray's memory monitor kills with a text."""
    text = str(error)
    return "not enough memory" in text or "can't allocate memory" in text or "low on memory" in text


def _is_connection_lost(error: BaseException) -> bool:
    """Gloo raises a plain RuntimeError when the other end of a connection is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "closed by peer" in text)


def last_line(error: BaseException) -> str:
    """Last line of an error's text: Ray puts the error of another process after its traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def _first_line(error: BaseException) -> str:
    line, name = str(error).strip().partition("\n")[0].strip(), type(error).__name__
    if isinstance(error, OrchestratorError):
        return line or name
    return f"{name}: {line}" if line else name
