"""What to do after a failure: pure decisions from what failed and from what failed before."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import OrchestratorError


class Cause(enum.StrEnum):
    """Kinds of failures, those that tell most first."""

    MISTAKE = "a mistake in the job, its data or its surroundings"
    OUT_OF_MEMORY = "a worker had too little memory"
    PREEMPTED = "a machine is being taken away"
    RESIZED = "there is room for more workers"
    HUNG = "a worker was stuck"
    LOST = "a worker was lost"
    ERROR = "a worker failed"
    PASSING = "something was out of reach"
    CONTROLLER = "Ray Train's controller was lost"
    START = "the workers could not begin together"


_BROKEN = "lost its connection to another"
"""What tells least: it is the other that failed."""
FREE = (Cause.PREEMPTED, Cause.RESIZED)
"""Nobody's fault: they do not count towards cluster.max_failures."""


class Leaving(Exception):
    """Workers have saved what they had and end, to begin again elsewhere."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True)
class Failure:
    """One end of a group of workers."""

    cause: Cause
    told: str
    """What the error says, in a line."""
    images_seen: int = 0
    """How far the training had come, as far as was told."""


@dataclass(frozen=True)
class Decision:
    """What is done, and why."""

    action: Literal["restart", "restart smaller", "give up"]
    reason: str


def num_halvings(history: Sequence[Failure]) -> int:
    """How often the images of a pass were halved, or should be, for want of memory."""
    return sum(failure.cause is Cause.OUT_OF_MEMORY for failure in history)


def decide(history: Sequence[Failure], max_failures: int, most_halvings: int) -> Decision:
    """What to do after the last failure of ``history``, which holds all of the run, oldest first.

    Args:
        most_halvings: how often the images of a pass can be halved and train the same; of
            interest when the last failure is a lack of memory.
    """
    last = history[-1]
    counted = sum(failure.cause not in FREE for failure in history)
    told = f"{last.cause}: {last.told}"
    if last.cause in FREE:
        return Decision("restart", f"{told}; that does not count as a failure")
    hopeless = _hopeless(history, most_halvings)
    if hopeless is None and counted > max_failures:
        hopeless = f"cluster.max_failures is {max_failures}"
    if hopeless is not None:
        return Decision("give up", f"{told}; {hopeless}")
    count = f"failure {counted} of at most {max_failures}"
    if last.cause is Cause.OUT_OF_MEMORY:
        return Decision("restart smaller", f"{told}; half as many images in a pass; {count}")
    return Decision("restart", f"{told}; {count}")


def _hopeless(history: Sequence[Failure], most_halvings: int) -> str | None:
    """Why another attempt would end as the last one did; None if it may not."""
    last = history[-1]
    if last.cause is Cause.MISTAKE:
        return "no restart can mend that"
    if last.cause is Cause.OUT_OF_MEMORY and num_halvings(history) > most_halvings:
        return (
            "it would happen again, and smaller passes are not possible or train otherwise; use a "
            "smaller "
            "train.batch_size, more cluster.workers or more memory"
        )
    return "it is the second time at the same place" if _repeated(history) else None


def _repeated(history: Sequence[Failure]) -> bool:
    """Whether a worker raised what it had raised before, without any progress in between."""
    return len(history) > 1 and history[-1].cause is Cause.ERROR and history[-2] == history[-1]


def classify(errors: Mapping[int, BaseException], images_seen: int) -> Failure:
    """The failure that a group's errors, by rank, amount to.

    One rank's end makes others fail whose connections break, so what tells most is taken.
    """
    found = [_one(rank, error) for rank, error in sorted(errors.items())]
    broken = [pair for pair in found if pair[1].endswith(_BROKEN)]
    order = list(Cause)
    first = min(
        [pair for pair in found if pair not in broken] or broken, key=lambda p: order.index(p[0])
    )
    return Failure(*first, images_seen)


def _one(rank: int, error: BaseException) -> tuple[Cause, str]:
    # Ray Train wraps what it found out about a worker that does not answer.
    error = getattr(error, "health_check_failure", error)
    names = {kind.__name__ for kind in type(error).__mro__}
    text = f"rank {rank}: {_line(error)}"
    if isinstance(error, Leaving):
        return error.cause, f"rank {rank} has saved its last step"
    if isinstance(error, OrchestratorError) and not error.retry:
        return Cause.MISTAKE, _line(error)
    if names & {"OutOfMemoryError", "MemoryError"} or _says_out_of_memory(error):
        return Cause.OUT_OF_MEMORY, text
    if names & {"RayActorError"}:
        cause = Cause.PREEMPTED if getattr(error, "preempted", False) else Cause.LOST
        return cause, f"rank {rank} is gone"
    if names & {"DistBackendError", "DistNetworkError"} or _says_connection_lost(error):
        return Cause.LOST, f"rank {rank} {_BROKEN}"
    return (Cause.PASSING if isinstance(error, OrchestratorError) else Cause.ERROR), text


def _says_out_of_memory(error: BaseException) -> bool:
    """torch's CPU allocator has no class of its own; Ray's memory monitor kills with a text."""
    text = str(error)
    return "not enough memory" in text or "can't allocate memory" in text or "low on memory" in text


def _says_connection_lost(error: BaseException) -> bool:
    """Gloo raises a plain RuntimeError when the other end of a connection is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "closed by peer" in text)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if isinstance(error, OrchestratorError):
        return lines[0] if lines else name
    return f"{name}: {lines[0]}" if lines else name
