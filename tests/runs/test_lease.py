"""A run has one driver: leases, heartbeats and their end."""

import json
import os
import socket
from pathlib import Path

import pytest

from orchestrator.errors import OrchestratorError, TryAgain, UsageError
from orchestrator.runs import lease
from orchestrator.runs.lease import find_expired_lease, has_ended, hold_lease, lease_key
from orchestrator.storage.base import Storage, WrappedStorage
from orchestrator.storage.open import open_storage
from support.waiting import wait_until


def test_a_run_with_another_living_driver_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.3)
    storage = open_storage(str(tmp_path))
    with (
        hold_lease(storage, "small-1"),
        pytest.raises(UsageError, match=rf"already has a driver, process {os.getpid()} on "),
        hold_lease(storage, "small-1"),
    ):
        pass
    with hold_lease(storage, "small-1"):
        pass
    assert json.loads(storage.get(lease_key("small-1")))["ended"] is True


def test_a_lease_in_an_older_format_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put(lease_key("small-1"), b'{"host": "a", "pid": 1, "beat": 7, "ended": false}')
    with (
        pytest.raises(UsageError, match=r"small-1/driver\.json has format 1, .* reads format 2"),
        hold_lease(storage, "small-1"),
    ):
        pass


class StoppedClock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_lease_of_a_driver_on_another_host_expires_without_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StoppedClock()
    monkeypatch.setattr(lease, "time", clock)
    storage = open_storage(str(tmp_path))
    with hold_lease(storage, "small-1"):
        held = json.loads(storage.get(lease_key("small-1")))
    held = {**held, "host": f"not-{socket.gethostname()}", "pid": 1, "ended": False}
    storage.put(lease_key("small-1"), json.dumps(held).encode())
    with hold_lease(storage, "small-1"):
        assert clock.now == lease.LEASE_TIMEOUT_S + lease.SETTLE_S
    dead = {**held, "host": socket.gethostname(), "pid": 2**22 + 1}
    storage.put(lease_key("small-1"), json.dumps(dead).encode())
    clock.now = 0.0
    with hold_lease(storage, "small-1"):
        assert clock.now == lease.SETTLE_S, "a process on this host is checked directly"


def test_an_orphaned_run_is_recognized_by_the_last_heartbeat_of_its_driver(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert has_ended(storage, "small-1"), "it never had a driver"
    with hold_lease(storage, "small-1") as held:
        assert not has_ended(storage, "small-1")
        written = json.loads(storage.get(lease_key("small-1")))
        held.mark_stopping()
        wait_until(lambda: has_ended(storage, "small-1"), 60, "the record of the stop")
    assert find_expired_lease(storage, "small-1") is None
    dead = json.dumps({**written, "pid": 2**22 + 1}).encode()
    storage.put(lease_key("small-1"), dead)
    assert find_expired_lease(storage, "small-1") == dead


def test_of_two_drivers_that_resume_a_run_at_once_the_later_one_gets_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    with hold_lease(storage, "small-1"):
        written = json.loads(storage.get(lease_key("small-1")))
    storage.put(lease_key("small-1"), json.dumps({**written, "pid": 2**22 + 1}).encode())

    class Race(StoppedClock):
        def sleep(self, seconds: float) -> None:
            other = {**written, "id": "another driver", "ended": False}
            storage.put(lease_key("small-1"), json.dumps(other).encode())

    monkeypatch.setattr(lease, "time", Race())
    with (
        pytest.raises(TryAgain, match="another driver resumed run small-1 at the same moment"),
        hold_lease(storage, "small-1"),
    ):
        pass


def test_a_storage_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(WrappedStorage):
        def __init__(self, inner: Storage) -> None:
            super().__init__(inner)
            self.num_failures = 0
            self.fails = False

        def put(self, key: str, data: bytes) -> None:
            if self.fails:
                self.num_failures += 1
                raise OrchestratorError("the storage is down")
            super().put(key, data)

    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    storage = Failing(open_storage(str(tmp_path)))
    with hold_lease(storage, "small-1"):
        storage.fails = True
        wait_until(lambda: storage.num_failures >= 2, 60, "two failed heartbeats")
        storage.fails = False
        before = storage.get(lease_key("small-1"))
        wait_until(lambda: storage.get(lease_key("small-1")) != before, 60, "a heartbeat")
    assert has_ended(storage, "small-1")
