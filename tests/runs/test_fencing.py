"""The protocol of drivers that take over from each other, in every order of their operations."""

import json
import re
from functools import cache
from typing import Any

import pytest

from orchestrator.errors import Superseded, TryAgain, UsageError
from orchestrator.runs import lease
from orchestrator.runs.checkpoint_reader import MANIFEST
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.lease import Fence, hold_lease, lease_key
from orchestrator.runs.record import FINISHED
from orchestrator.storage.base import Storage
from support.interleavings import Died, World, explore

RUN = "small-1"
DEAD = {"format": 2, "host": "a", "pid": 1, "id": "x", "heartbeat": 3, "stopping": False}
DONE = f"{RUN}/{FINISHED}"
START = {lease_key(RUN, 1): json.dumps({**DEAD, "ended": False}).encode()}


STATES_OF_TWO = 5_662
"""States of two drivers, of which each may be suspended, and killed, at any operation."""
STATES_OF_THREE = 564_271
"""States of three drivers, of which two may be killed, and each commits a checkpoint at once."""


class NoHeartbeat:
    """The heartbeat is an operation of the actors here, at any moment, and not of a thread."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def suspended_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may be suspended for longer than its lease: each may find the other's expired."""
    monkeypatch.setattr(lease, "lease_expired", lambda *_: True)
    monkeypatch.setattr(lease, "Periodic", NoHeartbeat)


@cache
def without_id(value: bytes) -> bytes:
    return re.sub(rb'"id": "\w+"', b"", value)


def state_of(value: Any) -> Any:
    """A value without the random id of its lease."""
    return without_id(value) if isinstance(value, bytes) else value


def commit(storage: Storage, fence: Fence, name: str) -> None:
    """Commit an empty checkpoint, as ``Checkpoints.save`` does."""
    checkpoints = Checkpoints(storage, f"{RUN}/checkpoints", "", {}, fence.check)
    try:
        checkpoints._check_fence()
        storage.put_if_absent(f"{RUN}/checkpoints/{name}/{MANIFEST}", b"")
        checkpoints._check_fence()
    except BaseException as error:
        if not isinstance(error, Died):
            storage.delete(f"{RUN}/checkpoints/{name}/{MANIFEST}")
        raise


def driver(name: str, *, heartbeat: bool = True) -> Any:
    """A driver that resumes the run, sends a heartbeat, commits a checkpoint and finishes."""

    def run(storage: Storage) -> None:
        if storage.exists(DONE):
            return
        with hold_lease(storage, RUN, must_be_unfinished=True) as held:
            storage.put(f"terms/{name}", str(held.fence.term).encode())
            if heartbeat:
                held._renew()
            commit(storage, held.fence, name)
            held.fence.check()
            storage.put(DONE, b"")

    return run


def terms_of(world: World) -> dict[str, int]:
    """The term that each driver has got."""
    found = {key: value for key, value in world.content.items() if key.startswith("terms/")}
    return {key.removeprefix("terms/"): int(value) for key, value in found.items()}


def check(world: World) -> None:
    terms, errors, written = terms_of(world), world.errors, list(world.content)
    assert len(set(terms.values())) == len(terms), "a term has one driver"
    expected = (Died, Superseded, TryAgain, type(None))
    assert all(isinstance(error, expected) for error in errors.values()), (errors, world.order)
    leases = [key for key in written if key.startswith(f"{RUN}/drivers/")]
    assert leases == [lease_key(RUN, n + 1) for n in range(len(leases))], "terms have no gap"
    finished = written.index(DONE) if DONE in written else len(written)
    for name, term in terms.items():
        committed = f"{RUN}/checkpoints/{name}/{MANIFEST}"
        if isinstance(errors[name], Died):
            continue
        is_superseded = isinstance(errors[name], Superseded)
        assert is_superseded <= (term < len(leases)), "it has a successor"
        assert committed in written or errors[name] is not None, "it keeps what it has done"
        if committed in written:
            successor = written.index(leases[term]) if term < len(leases) else len(written)
            assert written.index(committed) < successor, world.order
            assert written.index(leases[term - 1]) < finished, "it began before another finished"
    if not any(isinstance(error, Died) for error in errors.values()):
        assert DONE in written, "one of them finishes the run"


def explore_drivers(*names: str, heartbeat: bool = True, crashes: int = 1) -> int:
    drivers = {name: driver(name, heartbeat=heartbeat) for name in names}
    return explore(START, drivers, check, state_of, crashes, ("terms/",))


@pytest.mark.slow
def test_two_drivers_that_resume_a_run_never_both_go_on() -> None:
    assert explore_drivers("a", "b", crashes=2) == STATES_OF_TWO


@pytest.mark.slow
def test_three_drivers_that_resume_a_run_never_go_on_together() -> None:
    assert explore_drivers("a", "b", "c", heartbeat=False, crashes=2) == STATES_OF_THREE


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_the_checker_finds_a_protocol_without_a_fence(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fence, "check", lambda self: None)
    with pytest.raises(AssertionError):
        explore_drivers(*names)


def test_the_checker_finds_a_driver_that_resumes_a_finished_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "FINISHED", "nothing.json")
    with pytest.raises(AssertionError, match="it began before another finished"):
        explore_drivers("a", "b")


def test_the_checker_finds_a_term_that_two_drivers_can_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overwrite(held: lease.DriverLease) -> None:
        held._storage.put(lease_key(RUN, held.fence.term), held._content())

    monkeypatch.setattr(lease.DriverLease, "acquire", overwrite)
    with pytest.raises(AssertionError, match="a term has one driver"):
        explore_drivers("a", "b")


def test_a_driver_that_is_alive_is_not_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "lease_expired", lambda *_: False)
    refused: list[BaseException | None] = []

    def check_refused(world: World) -> None:
        refused.extend(world.errors.values())
        assert all(isinstance(error, UsageError | Died) for error in world.errors.values())

    explore(START, {"a": driver("a"), "b": driver("b")}, check_refused, state_of)
    assert refused
