"""What is decided after a failure, from classes of errors, and who is taken for stuck."""

import pickle

import pytest
import ray.exceptions
import torch

from orchestrator.cluster.failure_policy import Cause, Failure, Leaving, classify, decide
from orchestrator.cluster.hang_detection import SILENT_S, find_stuck
from orchestrator.cluster.worker_state import ENDED, STOP, Beat, Mailbox
from orchestrator.errors import DataError, Diverged, TryAgain, UsageError
from orchestrator.training.interfaces import STEP


class _Wrapped(Exception):
    """As Ray Train wraps what it found out about a worker that does not answer."""

    def __init__(self, inner: Exception) -> None:
        self.health_check_failure = inner


GLOO = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [1.2.3.4]")
DEAD = _Wrapped(ray.exceptions.ActorDiedError())


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ({0: UsageError("bad")}, Cause.MISTAKE),
        ({0: GLOO, 1: DataError("damaged")}, Cause.MISTAKE),
        ({0: Diverged("nan"), 1: Diverged("nan")}, Cause.MISTAKE),
        ({1: DEAD}, Cause.LOST),
        ({0: GLOO}, Cause.LOST),
        ({0: GLOO, 1: DEAD}, Cause.LOST),
        ({0: torch.OutOfMemoryError("CUDA out of memory"), 1: GLOO}, Cause.OUT_OF_MEMORY),
        ({1: MemoryError()}, Cause.OUT_OF_MEMORY),
        (
            {0: RuntimeError("[alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")},
            Cause.OUT_OF_MEMORY,
        ),
        ({0: Leaving(Cause.PREEMPTED), 1: GLOO}, Cause.PREEMPTED),
        ({0: Leaving(Cause.RESIZED)}, Cause.RESIZED),
        ({0: TryAgain("the store restarts")}, Cause.PASSING),
        ({0: GLOO, 1: ZeroDivisionError("division by zero")}, Cause.ERROR),
    ],
)  # fmt: skip
def test_the_error_that_tells_most_gives_the_cause(
    errors: dict[int, BaseException], cause: Cause
) -> None:
    assert classify(errors, 100).cause is cause


def failures(*causes: Cause) -> list[Failure]:
    return [Failure(cause, "x", number) for number, cause in enumerate(causes)]


def test_a_mistake_is_given_up_at_once_whatever_budget_is_left() -> None:
    decision = decide(failures(Cause.MISTAKE), 100, most_halvings=2)
    assert decision.action == "give up"
    assert "no restart can mend that" in decision.reason


def test_lost_workers_are_restarted_as_often_as_the_job_allows_and_no_more() -> None:
    history = failures(Cause.LOST, Cause.HUNG, Cause.CONTROLLER)
    assert decide(history[:2], 2, most_halvings=2).action == "restart"
    decision = decide(history, 2, most_halvings=2)
    assert (decision.action, "cluster.max_failures is 2" in decision.reason) == ("give up", True)


def test_machines_that_are_taken_away_or_come_do_not_burn_the_budget() -> None:
    history = failures(*[Cause.PREEMPTED, Cause.RESIZED] * 20, Cause.LOST)
    assert decide(history[:-1], 0, most_halvings=0).action == "restart"
    assert decide(history, 1, most_halvings=0).action == "restart"
    assert decide(history, 0, most_halvings=0).action == "give up"


def test_too_little_memory_is_never_tried_again_unchanged() -> None:
    history = failures(Cause.OUT_OF_MEMORY)
    assert decide(history, 3, most_halvings=2).action == "restart smaller"
    assert decide(history, 3, most_halvings=0).action == "give up"
    again = failures(Cause.OUT_OF_MEMORY, Cause.LOST, Cause.OUT_OF_MEMORY, Cause.OUT_OF_MEMORY)
    assert decide(again[:3], 9, most_halvings=2).action == "restart smaller"
    assert decide(again, 9, most_halvings=2).action == "give up", "a pass of one image is the least"


def test_the_same_error_twice_without_progress_is_taken_for_a_bug() -> None:
    error = Failure(Cause.ERROR, "rank 0: KeyError: 'x'", 400)
    assert decide([error], 9, most_halvings=2).action == "restart"
    assert decide([error, error], 9, most_halvings=2).action == "give up"
    later = Failure(Cause.ERROR, error.told, 800)
    assert decide([error, later], 9, most_halvings=2).action == "restart"


def beat(
    steps: int = 10, doing: str = STEP, for_s: float = 1, longest: float = 1, age: float = 0.3
) -> Beat:
    return Beat(2, "node", "host", 1, doing, for_s, steps, longest, age_s=age)


@pytest.mark.parametrize(
    ("beats", "rank"),
    [
        ({0: beat(), 1: beat()}, None),
        ({0: beat(), 1: beat(age=SILENT_S + 1)}, 1),
        ({0: beat(doing="saving"), 1: beat(age=500, doing=ENDED)}, None),
        ({0: beat(for_s=50), 1: beat(for_s=50, steps=9)}, 1),
        ({0: beat(for_s=50), 1: beat(for_s=2)}, None),
        ({0: beat(for_s=50), 1: beat(for_s=50, doing="waiting for data")}, None),
        ({0: beat(for_s=500, doing="drawing samples"), 1: beat(for_s=500)}, None),
        ({0: beat(for_s=50, longest=6), 1: beat(for_s=50)}, None),
        ({0: beat(for_s=500, steps=1), 1: beat(for_s=500, steps=1)}, None),
        ({0: beat(for_s=500)}, None),
        ({}, None),
    ],
)
def test_the_stuck_rank_is_the_silent_one_or_the_last_of_a_group_within_one_step(
    beats: dict[int, Beat], rank: int | None
) -> None:
    found = find_stuck(beats, hang_timeout_s=45)
    assert (found.rank if found else None) == rank


def test_a_new_group_begins_without_the_old_ones_beats_and_wishes_but_a_stop_stays() -> None:
    mailbox = Mailbox()
    mailbox.ask(Cause.PREEMPTED.value)
    assert mailbox.beat(0, beat()) == Cause.PREEMPTED.value
    mailbox.failed(Failure(Cause.PREEMPTED, "x"))
    assert mailbox.read().beats == {}
    assert mailbox.wish() is None
    mailbox.ask(STOP)
    mailbox.failed(Failure(Cause.LOST, "x"))
    assert mailbox.wish() == STOP


def test_a_worker_that_was_ended_because_it_was_stuck_is_told_of_as_that() -> None:
    mailbox = Mailbox()
    mailbox.hung("rank 1 stood still")
    (failure,) = mailbox.failed(Failure(Cause.LOST, "rank 1 is gone", 40))
    assert failure == Failure(Cause.HUNG, "rank 1 stood still", 40)
    assert mailbox.failed(Failure(Cause.LOST, "rank 0 is gone"))[-1].cause is Cause.LOST


def test_what_workers_are_sent_when_they_begin_does_not_grow_with_their_number() -> None:
    def sent(num_workers: int) -> int:
        """Bytes that all workers of a group get, each of them after the first beat of the last."""
        mailbox = Mailbox()
        mailbox.failed(Failure(Cause.LOST, "x", 40))
        num_bytes = 0
        for rank in range(num_workers):
            failures = mailbox.failures()
            assert failures == [Failure(Cause.LOST, "x", 40)]
            num_bytes += len(pickle.dumps(failures))
            mailbox.beat(rank, beat())
        return num_bytes

    assert sent(400) == 100 * sent(4)


def test_the_driver_reads_each_note_once() -> None:
    mailbox, said = Mailbox(), []
    for text in "abc":
        mailbox.note(text)
        said += mailbox.read_reports(0, len(said)).notes
    assert said == ["a", "b", "c"]
    assert mailbox.read_reports(0, 3).notes == []
    mailbox.note("d")
    assert mailbox.read_reports(0, 3).notes == ["d"]
