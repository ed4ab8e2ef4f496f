"""Decisions after failures, detection of stuck workers and the state of a worker group."""

import pickle
from dataclasses import replace

import pytest
import ray.exceptions
import torch

from orchestrator.cluster.failure_policy import Cause, Failure, RestartRequested, classify, decide
from orchestrator.cluster.hang_detection import find_stuck
from orchestrator.cluster.ray_compat import last_error_line
from orchestrator.cluster.worker_state import (
    ENDED,
    HEARTBEAT_TIMEOUT_S,
    STOP,
    Heartbeat,
    WorkerGroupState,
)
from orchestrator.errors import DataError, Diverged, TryAgain, UsageError
from orchestrator.training.interfaces import STEP


class _Wrapped(Exception):
    """Wrapper of Ray Train around the failure of a health check."""

    def __init__(self, inner: Exception) -> None:
        self.health_check_failure = inner


GLOO = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [1.2.3.4]")
DEAD = _Wrapped(ray.exceptions.ActorDiedError())
CANNOT_START = ray.exceptions.RayActorError(
    "", "The actor died\n\nTraceback\n\nModuleNotFoundError: No module named 'x'", True
)


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ({0: UsageError("bad")}, Cause.USER_ERROR),
        ({0: GLOO, 1: DataError("damaged")}, Cause.USER_ERROR),
        ({0: Diverged("nan"), 1: Diverged("nan")}, Cause.USER_ERROR),
        ({1: DEAD}, Cause.LOST),
        ({0: GLOO, 1: CANNOT_START}, Cause.IMPORT),
        ({0: ModuleNotFoundError("No module named 'x'")}, Cause.IMPORT),
        ({0: GLOO}, Cause.LOST),
        ({0: GLOO, 1: DEAD}, Cause.LOST),
        ({0: torch.OutOfMemoryError("CUDA out of memory"), 1: GLOO}, Cause.OUT_OF_MEMORY),
        ({1: MemoryError()}, Cause.OUT_OF_MEMORY),
        (
            {0: RuntimeError("[alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")},
            Cause.OUT_OF_MEMORY,
        ),
        ({0: RestartRequested(Cause.PREEMPTED), 1: GLOO}, Cause.PREEMPTED),
        ({0: RestartRequested(Cause.RESIZED)}, Cause.RESIZED),
        ({0: TryAgain("the store restarts")}, Cause.UNAVAILABLE),
        ({0: GLOO, 1: ZeroDivisionError("division by zero")}, Cause.ERROR),
    ],
)  # fmt: skip
def test_the_most_informative_error_gives_the_cause(
    errors: dict[int, BaseException], cause: Cause
) -> None:
    assert classify(errors, 100).cause is cause


def failures(*causes: Cause) -> list[Failure]:
    return [Failure(cause, "x", number) for number, cause in enumerate(causes)]


@pytest.mark.parametrize("cause", [Cause.USER_ERROR, Cause.IMPORT])
def test_an_error_that_no_restart_fixes_stops_at_once_whatever_budget_is_left(
    cause: Cause,
) -> None:
    decision = decide(failures(cause), 100, max_halvings=2)
    assert decision.action == "stop"
    assert "a restart cannot fix this" in decision.reason


def test_lost_workers_are_restarted_as_often_as_the_job_allows_and_no_more() -> None:
    history = failures(Cause.LOST, Cause.HUNG, Cause.CONTROLLER)
    assert decide(history[:2], 2, max_halvings=2).action == "restart"
    decision = decide(history, 2, max_halvings=2)
    assert (decision.action, "cluster.max_failures is 2" in decision.reason) == ("stop", True)


def test_nodes_that_leave_or_join_do_not_use_up_the_budget() -> None:
    history = failures(*[Cause.PREEMPTED, Cause.RESIZED] * 20, Cause.LOST)
    assert decide(history[:-1], 0, max_halvings=0).action == "restart"
    assert decide(history, 1, max_halvings=0).action == "restart"
    assert decide(history, 0, max_halvings=0).action == "stop"


def test_a_lack_of_memory_is_never_retried_unchanged() -> None:
    history = failures(Cause.OUT_OF_MEMORY)
    assert decide(history, 3, max_halvings=2).action == "restart with smaller passes"
    assert decide(history, 3, max_halvings=0).action == "stop"
    again = failures(Cause.OUT_OF_MEMORY, Cause.LOST, Cause.OUT_OF_MEMORY, Cause.OUT_OF_MEMORY)
    assert decide(again[:3], 9, max_halvings=2).action == "restart with smaller passes"
    assert decide(again, 9, max_halvings=2).action == "stop", "a pass of one image is the least"


def test_the_same_error_twice_without_progress_stops_the_run() -> None:
    error = Failure(Cause.ERROR, "rank 0: KeyError: 'x'", 400)
    assert decide([error], 9, max_halvings=2).action == "restart"
    assert decide([error, error], 9, max_halvings=2).action == "stop"
    later = Failure(Cause.ERROR, error.message, 800)
    assert decide([error, later], 9, max_halvings=2).action == "restart"


def heartbeat(
    steps: int = 10, activity: str = STEP, for_s: float = 1, longest: float = 1, age: float = 0.3
) -> Heartbeat:
    return Heartbeat(2, "node", "host", 1, activity, for_s, steps, longest, age_s=age)


@pytest.mark.parametrize(
    ("heartbeats", "rank"),
    [
        ({0: heartbeat(), 1: heartbeat()}, None),
        ({0: heartbeat(), 1: heartbeat(age=HEARTBEAT_TIMEOUT_S + 1)}, 1),
        ({0: heartbeat(activity="saving"), 1: heartbeat(age=500, activity=ENDED)}, None),
        ({0: heartbeat(for_s=50), 1: heartbeat(for_s=50, steps=9)}, 1),
        ({0: heartbeat(for_s=50), 1: heartbeat(for_s=2)}, None),
        ({0: heartbeat(for_s=50), 1: heartbeat(for_s=50, activity="waiting for data")}, None),
        ({0: heartbeat(for_s=500, activity="drawing samples"), 1: heartbeat(for_s=500)}, None),
        ({0: heartbeat(for_s=50, longest=6), 1: heartbeat(for_s=50)}, None),
        ({0: heartbeat(for_s=500, steps=1), 1: heartbeat(for_s=500, steps=1)}, None),
        ({0: heartbeat(for_s=500)}, None),
        ({}, None),
    ],
)
def test_the_stuck_rank_sends_no_heartbeats_or_is_behind_all_others_in_a_long_step(
    heartbeats: dict[int, Heartbeat], rank: int | None
) -> None:
    found = find_stuck(heartbeats, hang_timeout_s=45)
    assert (found.rank if found else None) == rank


def test_a_new_group_starts_without_old_heartbeats_and_requests_except_a_stop() -> None:
    state = WorkerGroupState()
    state.request(Cause.PREEMPTED.value)
    assert state.heartbeat(0, heartbeat()) == Cause.PREEMPTED.value
    state.record_failure(Failure(Cause.PREEMPTED, "x"))
    assert state.read().heartbeats == {}
    assert state.requested_action() is None
    state.request(STOP)
    state.record_failure(Failure(Cause.LOST, "x"))
    assert state.requested_action() == STOP


def test_a_late_heartbeat_of_a_failed_group_is_not_taken_for_one_of_the_next() -> None:
    """Ray ends its workers some time after the failure; then they would look stuck."""
    state = WorkerGroupState()
    state.heartbeat(0, heartbeat())
    state.record_failure(Failure(Cause.LOST, "rank 1 is gone"))
    state.request(Cause.RESIZED.value)
    assert state.heartbeat(0, heartbeat()) is None, "the request is for the next group"
    assert state.read().heartbeats == {}
    assert state.heartbeat(0, replace(heartbeat(), attempt=1)) == Cause.RESIZED.value
    assert list(state.read().heartbeats) == [0]


def test_a_worker_that_was_killed_because_it_was_stuck_is_recorded_as_that() -> None:
    state = WorkerGroupState()
    state.mark_stuck("rank 1 stood still")
    (failure,) = state.record_failure(Failure(Cause.LOST, "rank 1 is gone", 40))
    assert failure == Failure(Cause.HUNG, "rank 1 stood still", 40)
    assert state.record_failure(Failure(Cause.LOST, "rank 0 is gone"))[-1].cause is Cause.LOST


def test_the_data_that_a_starting_worker_gets_does_not_grow_with_their_number() -> None:
    def sent(num_workers: int) -> int:
        """Bytes that all workers of a group get, each after the first heartbeat of the last."""
        state = WorkerGroupState()
        state.record_failure(Failure(Cause.LOST, "x", 40))
        num_bytes = 0
        for rank in range(num_workers):
            failures = state.failures()
            assert failures == [Failure(Cause.LOST, "x", 40)]
            num_bytes += len(pickle.dumps(failures))
            state.heartbeat(rank, replace(heartbeat(), attempt=1))
            assert rank in state.read().heartbeats
        return num_bytes

    assert sent(400) == 100 * sent(4)


class KeptBytes:
    """Memory of an actor that was started again."""

    content: bytes | None = None

    def save(self, content: bytes) -> None:
        self.content = content

    def load(self) -> bytes | None:
        return self.content


def test_a_state_that_was_lost_and_started_again_knows_what_nobody_sends_again() -> None:
    memory = KeptBytes()
    lost = WorkerGroupState(memory)
    lost.add_message("a")
    lost.record_failure(Failure(Cause.OUT_OF_MEMORY, "rank 1", 40))
    lost.heartbeat(0, replace(heartbeat(), attempt=1))
    lost.request(STOP)
    lost.update(outcome={"images_seen": 80})
    lost.mark_stuck("rank 1 stood still")
    for number in range(5):
        lost.update(report={"images_seen": number})
    assert len(lost.read_new(0, 0).unread_reports) == 5

    state = WorkerGroupState(memory)
    assert state.failures() == [Failure(Cause.OUT_OF_MEMORY, "rank 1", 40)]
    assert state.heartbeat(0, replace(heartbeat(), attempt=1)) == STOP
    assert state.read().outcome == {"images_seen": 80}
    state.update(report={"images_seen": 5})
    status = state.read_new(5, 1)
    assert [report["images_seen"] for report in status.unread_reports] == [5]
    (message,) = status.messages
    assert message.startswith("restart: the actor with the status of the workers was lost")
    state.update(report={"images_seen": 6})
    assert [report["images_seen"] for report in state.read_new(6, 2).unread_reports] == [6]
    assert state.record_failure(Failure(Cause.LOST, "x"))[-1].cause is Cause.HUNG


def test_the_driver_reads_each_message_once() -> None:
    state = WorkerGroupState()
    read: list[str] = []
    for text in "abc":
        state.add_message(text)
        read += state.read_new(0, len(read)).messages
    assert read == ["a", "b", "c"]
    assert state.read_new(0, 3).messages == []
    state.add_message("d")
    assert state.read_new(0, 3).messages == ["d"]


def test_a_rank_that_ends_while_it_starts_is_described_by_the_last_line_of_its_log() -> None:
    died = ray.exceptions.ActorDiedError()
    logged = {1: "OSError: [Errno 24] Too many open files"}
    failure = classify({0: GLOO, 1: died}, 0, logged)
    assert failure == Failure(Cause.LOST, f"rank 1 is gone: {logged[1]}")
    logged = {1: "ImportError: cannot import name 'Random' from 'random'"}
    assert classify({1: died}, 0, logged) == Failure(Cause.IMPORT, f"rank 1: {logged[1]}")


def test_the_last_error_line_of_a_log_is_found_between_other_output() -> None:
    log = (
        'starting\nTraceback (most recent call last):\n  File "x.py", line 1\n'
        "ray.exceptions.RayError: first\nValueError: second\n[2026-01-01 E] raylet: retrying\n"
    )
    assert last_error_line(log) == "ValueError: second"
    assert last_error_line("all is well\n") == ""
