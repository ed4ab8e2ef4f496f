"""The protocol of drivers that take over from each other, in every order of their operations."""

import json
import re
from typing import Any

import pytest

from orchestrator.errors import Superseded, TryAgain, UsageError
from orchestrator.runs import lease
from orchestrator.runs.checkpoints import MANIFEST, Checkpoints
from orchestrator.runs.lease import Fence, hold_lease, lease_key
from orchestrator.storage.base import Storage
from support.interleavings import Died, World, explore

RUN = "small-1"
DEAD = {"format": 2, "host": "a", "pid": 1, "id": "x", "heartbeat": 3, "stopping": False}
START = {lease_key(RUN, 1): json.dumps({**DEAD, "ended": False}).encode()}


NUM_STATES = 2_411
"""States of two drivers, of which each may be suspended, and one killed, at any operation."""


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


def state_of(value: Any) -> Any:
    """A value without the random id of its lease and the process."""
    return re.sub(rb'"id": "\w+"', b"", value) if isinstance(value, bytes) else value


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


def driver(name: str) -> Any:
    """A driver that resumes the run, sends a heartbeat, commits a checkpoint and finishes."""

    def run(storage: Storage) -> None:
        with hold_lease(storage, RUN) as held:
            storage.put(f"terms/{name}", str(held.fence.term).encode())
            held._renew()
            commit(storage, held.fence, name)
            held.fence.check()
            storage.put(f"registered/{held.fence.term}", name.encode())

    return run


def terms_of(world: World) -> dict[str, int]:
    """The term that each driver has got."""
    found = {key: value for key, value in world.content.items() if key.startswith("terms/")}
    return {key.removeprefix("terms/"): int(value) for key, value in found.items()}


def is_late(world: World, name: str, term: int) -> bool:
    """Whether a driver committed its checkpoint after another one had taken over."""
    commit_at = f"{name}: put_if_absent {RUN}/checkpoints/{name}/{MANIFEST}"
    takeover = f"put_if_absent {lease_key(RUN, term + 1)}"
    order = world.order
    taken_over = [n for n, each in enumerate(order) if each.endswith(takeover)]
    return commit_at in order and bool(taken_over) and taken_over[0] < order.index(commit_at)


def check(world: World) -> None:
    terms, errors = terms_of(world), world.errors
    assert len(set(terms.values())) == len(terms), "a term has one driver"
    expected = (Died, Superseded, TryAgain, type(None))
    assert all(isinstance(error, expected) for error in errors.values()), (errors, world.order)
    leases = [key for key in world.content if key.startswith(f"{RUN}/drivers/")]
    assert leases == [lease_key(RUN, n + 1) for n in range(len(leases))], "terms have no gap"
    for name, term in terms.items():
        is_committed = f"{RUN}/checkpoints/{name}/{MANIFEST}" in world.content
        if isinstance(errors[name], Died):
            continue
        assert isinstance(errors[name], Superseded) <= (term < len(leases)), "it has a successor"
        assert is_committed or errors[name] is not None, "it keeps what it has done"
        assert not (is_committed and is_late(world, name, term)), world.order
    if not any(isinstance(error, Died) for error in errors.values()):
        assert any(error is None for error in errors.values()), "one of them finishes the run"


@pytest.mark.slow
def test_two_drivers_that_resume_a_run_never_both_go_on() -> None:
    assert explore(START, {"a": driver("a"), "b": driver("b")}, check, state_of) == NUM_STATES


def test_the_checker_finds_a_protocol_without_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "check", lambda self: None)
    with pytest.raises(AssertionError):
        explore(START, {"a": driver("a"), "b": driver("b")}, check, state_of)


def test_the_checker_finds_a_term_that_two_drivers_can_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overwrite(held: lease.DriverLease) -> None:
        held._storage.put(lease_key(RUN, held.fence.term), held._content())

    monkeypatch.setattr(lease.DriverLease, "acquire", overwrite)
    with pytest.raises(AssertionError, match="a term has one driver"):
        explore(START, {"a": driver("a"), "b": driver("b")}, check, state_of)


def test_a_driver_that_is_alive_is_not_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "lease_expired", lambda *_: False)
    refused: list[BaseException | None] = []

    def check_refused(world: World) -> None:
        refused.extend(world.errors.values())
        assert all(isinstance(error, UsageError | Died) for error in world.errors.values())

    explore(START, {"a": driver("a"), "b": driver("b")}, check_refused, state_of)
    assert refused
