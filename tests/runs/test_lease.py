"""A run has one driver: leases, heartbeats and their end."""

import json
import os
import pickle
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import OrchestratorError, Superseded, TryAgain, UsageError
from orchestrator.runs import lease
from orchestrator.runs.lease import (
    find_expired_lease,
    has_ended,
    hold_lease,
    lease_key,
    read_drivers,
)
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
    assert json.loads(storage.get(lease_key("small-1", 1)))["ended"] is True


def test_the_lease_of_version_0_2_counts_as_the_first(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    held = {"format": 2, "host": socket.gethostname(), "id": "x", "heartbeat": 7, "stopping": False}
    alive = {**held, "pid": os.getpid(), "ended": False}
    storage.put("small-1/driver.json", json.dumps({**alive, "pid": 2**22 + 1}).encode())
    assert find_expired_lease(storage, "small-1") is not None
    with hold_lease(storage, "small-1") as lease:
        assert lease.fence.term == 1


def test_a_lease_in_another_format_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put(lease_key("small-1", 3), b'{"host": "a", "pid": 1, "beat": 7, "ended": false}')
    with (
        pytest.raises(
            UsageError, match=r"small-1/drivers/000003\.json has format 1, .* reads format 2"
        ),
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
        held = json.loads(storage.get(lease_key("small-1", 1)))
    held = {**held, "host": f"not-{socket.gethostname()}", "pid": 1, "ended": False}
    storage.put(lease_key("small-1", 1), json.dumps(held).encode())
    with hold_lease(storage, "small-1"):
        assert clock.now == lease.LEASE_TIMEOUT_S
    dead = {**held, "host": socket.gethostname(), "pid": 2**22 + 1}
    storage.put(lease_key("small-1", 2), json.dumps(dead).encode())
    clock.now = 0.0
    with hold_lease(storage, "small-1"):
        assert clock.now == 0, "a process on this host is checked directly"


def test_an_orphaned_run_is_recognized_by_the_last_heartbeat_of_its_driver(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert has_ended(storage, "small-1"), "it never had a driver"
    with hold_lease(storage, "small-1") as held:
        assert not has_ended(storage, "small-1")
        written = json.loads(storage.get(lease_key("small-1", 1)))
        held.mark_stopping()
        wait_until(lambda: has_ended(storage, "small-1"), 60, "the record of the stop")
    assert find_expired_lease(storage, "small-1") is None
    dead = json.dumps({**written, "pid": 2**22 + 1}).encode()
    storage.put(lease_key("small-1", 1), dead)
    assert find_expired_lease(storage, "small-1") == dead


def test_of_several_drivers_that_resume_a_run_at_once_one_gets_the_lease(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with hold_lease(storage, "small-1"):
        pass
    barrier, release = threading.Barrier(8), threading.Event()

    class Slow(WrappedStorage):
        """All drivers have read the old lease before any of them writes."""

        def put_if_absent(self, key: str, data: bytes) -> bool:
            barrier.wait(60)
            return super().put_if_absent(key, data)

    def resume(_: int) -> str:
        try:
            with hold_lease(Slow(storage), "small-1"):
                release.wait(60)
        except TryAgain as error:
            return str(error)
        return "held"

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(resume, n) for n in range(8)]
        wait_until(lambda: sum(each.done() for each in results) == 7, 60, "seven refusals")
        release.set()
        found = Counter(each.result() for each in results)
    refusal = "another driver resumed run small-1 at the same moment; try again to start a new run"
    assert found == {"held": 1, refusal: 7}


def test_a_driver_that_was_suspended_learns_that_it_was_superseded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(lease, "lease_expired", lambda *_: True)
    told = threading.Event()

    def suspend() -> None:
        with hold_lease(storage, "small-1") as suspended:
            suspended.on_superseded = told.set
            fence = pickle.loads(pickle.dumps(suspended.fence))
            fence.check()
            with hold_lease(storage, "small-1") as successor:
                written = storage.get(lease_key("small-1", 2))
                suspended.heartbeat.wake()
                assert told.wait(60)
                assert storage.get(lease_key("small-1", 2)) == written, "its lease is untouched"
                with pytest.raises(Superseded):
                    fence.check()
                successor.fence.check()
                raise RuntimeError("whatever follows from the loss")

    with pytest.raises(Superseded, match="another driver has taken over small-1"):
        suspend()


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
        before = storage.get(lease_key("small-1", 1))
        wait_until(lambda: storage.get(lease_key("small-1", 1)) != before, 60, "a heartbeat")
    assert has_ended(storage, "small-1")


def test_a_signal_handler_learns_of_a_successor_without_asking_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(lease, "lease_expired", lambda *_: True)
    with hold_lease(storage, "small-1") as suspended:
        assert not suspended.superseded
        with hold_lease(storage, "small-1"):
            suspended.heartbeat.wake()
            wait_until(lambda: suspended.superseded, 60, "its next heartbeat")


def test_a_run_that_another_driver_finished_since_it_was_found_is_left_alone(
    tmp_path: Path,
) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("small-1/finished.json", b"{}")
    with (
        pytest.raises(Superseded, match="has finished small-1") as caught,
        hold_lease(storage, "small-1", must_be_unfinished=True),
    ):
        pytest.fail("it holds the lease")
    assert caught.value.exit_code == 75
    assert has_ended(storage, "small-1"), "nobody waits for it"


@pytest.mark.parametrize(
    ("host", "ended", "may_live"),
    [("elsewhere", False, True), (socket.gethostname(), False, False), ("elsewhere", True, False)],
    ids=["it was silent", "its process is gone", "it ended"],
)
def test_a_driver_knows_whether_the_one_before_it_may_be_alive(
    host: str, ended: bool, may_live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_S", 0.1)
    storage = open_storage(str(tmp_path))
    held = {"format": 2, "host": host, "id": "x", "heartbeat": 7, "stopping": False}
    content = {**held, "pid": 2**22 + 1, "ended": ended}
    storage.put(lease_key("small-1", 1), json.dumps(content).encode())
    with hold_lease(storage, "small-1") as found:
        assert found.fence.predecessor_may_live is may_live


def test_a_driver_that_a_transient_failure_interrupted_leaves_an_orphaned_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next driver waits for nothing, although this process is alive."""
    monkeypatch.setattr(lease, "time", clock := StoppedClock())
    storage = open_storage(str(tmp_path))
    with pytest.raises(TryAgain), hold_lease(storage, "small-1"):
        raise TryAgain("the Ray cluster was lost")
    assert not has_ended(storage, "small-1")
    found = find_expired_lease(storage, "small-1")
    assert found is not None
    with hold_lease(storage, "small-1", found):
        pass
    assert clock.now == 0
    assert has_ended(storage, "small-1")


@pytest.mark.parametrize("error", [OrchestratorError("x"), Superseded("x"), KeyboardInterrupt()])
def test_a_driver_that_ends_in_another_way_leaves_no_orphaned_run(
    tmp_path: Path, error: BaseException
) -> None:
    storage = open_storage(str(tmp_path))
    with pytest.raises(type(error)), hold_lease(storage, "small-1"):
        raise error
    assert has_ended(storage, "small-1")


def test_a_run_that_was_stopped_while_its_cluster_was_lost_is_not_orphaned(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))

    def drive() -> None:
        with hold_lease(storage, "small-1") as held:
            held.mark_stopping()
            raise TryAgain("the Ray cluster was lost")

    with pytest.raises(TryAgain):
        drive()
    assert has_ended(storage, "small-1")


def test_how_each_driver_ended_can_be_read(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert read_drivers(storage, "small-1") == []
    with hold_lease(storage, "small-1"):
        assert read_drivers(storage, "small-1") == ["alive"]
    with pytest.raises(TryAgain), hold_lease(storage, "small-1"):
        raise TryAgain("a cluster was lost")
    with hold_lease(storage, "small-1") as held:
        held.mark_stopping()
    content = json.loads(storage.get(lease_key("small-1", 3)))
    killed = {**content, "ended": False, "stopping": False, "pid": 2**22 + 1}
    storage.put(lease_key("small-1", 4), json.dumps(killed).encode())
    ends = ["ended", "interrupted", "stopped", "died"]
    assert read_drivers(storage, "small-1") == ends
    elsewhere = {**killed, "host": "another-machine"}
    storage.put(lease_key("small-1", 5), json.dumps(elsewhere).encode())
    assert read_drivers(storage, "small-1") == [*ends, "silent"]
