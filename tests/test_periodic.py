"""A function is called again and again while a block runs, and no longer."""

import threading

from orchestrator.periodic import Periodic
from support.waiting import wait_until


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def test_it_calls_until_the_block_ends() -> None:
    counter = Counter()
    with Periodic(counter, 0.01, name="counting"):
        wait_until(lambda: counter.calls >= 3, 10, "three calls")
    calls = counter.calls
    assert not any(thread.name == "counting" for thread in threading.enumerate())
    assert counter.calls == calls


def test_waking_it_makes_the_next_call_at_once() -> None:
    counter = Counter()
    with Periodic(counter, 3600, name="counting", delay=True) as periodic:
        assert counter.calls == 0
        periodic.wake()
        wait_until(lambda: counter.calls == 1, 10, "a call")


def test_it_calls_once_more_at_the_end_if_asked_to() -> None:
    counter = Counter()
    with Periodic(counter, 3600, name="counting", delay=True, at_end=True):
        pass
    assert counter.calls == 1
    with Periodic(counter, 3600, name="counting", delay=True):
        pass
    assert counter.calls == 1
