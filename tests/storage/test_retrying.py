"""Reading that waits: what is tried again, for how long, and what is told of it."""

import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import DataError, EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.storage import retrying
from orchestrator.storage.base import NotFound
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.retrying import RetryingStorage, ReadCounters, ReadCounts


class Faulty(FolderStorage):
    """A folder whose reads raise what is planned, one after the other, before they work."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.planned: list[OrchestratorError] = []
        self.away: set[str] = set()
        """Keys whose reads fail until they are taken out of here."""
        self.times: list[float] = []
        """When each read was tried."""
        self.put("key", b"0123456789")

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.times.append(time.monotonic())
        if key in self.away:
            raise self.busy()
        if self.planned:
            raise self.planned.pop(0)
        return super().get_range(key, start, length)

    def busy(self) -> TryAgain:
        return TryAgain(f"{self.uri}: http://host answered 503 SlowDown")

    def refused(self) -> EnvironmentProblem:
        return EnvironmentProblem(f"{self.uri}: http://host refused with 403; check AWS_PROFILE")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "SHORTEST_WAIT_S", 0.02)
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.1)


@pytest.fixture
def inner(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path)


@pytest.fixture
def storage(inner: Faulty) -> RetryingStorage:
    return RetryingStorage(inner, retry_timeout_s=0.5)


def test_a_passing_fault_is_tried_again_and_counted(
    inner: Faulty, storage: RetryingStorage
) -> None:
    inner.planned = [inner.busy() for _ in range(4)]
    assert storage.get_range("key", 2, 3) == b"234"
    assert storage.get("key") == b"0123456789"
    assert storage.counters.snapshot() == ReadCounts(bytes_read=13, requests=6, retries=4)


def test_the_waits_grow_and_stay_within_their_bounds(
    inner: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.06)
    inner.planned = [inner.busy() for _ in range(20)]
    RetryingStorage(inner, retry_timeout_s=60).get_range("key", 0, 1)
    waits = [b - a for a, b in zip(inner.times[:-1], inner.times[1:], strict=True)]
    assert len(waits) == 20
    assert min(waits) >= 0.019
    assert sorted(waits)[10] < 0.2, "the median; a busy machine may add to some"
    assert len({round(wait, 3) for wait in waits}) > 5


def test_patience_ends_in_a_data_error_that_says_all(
    inner: Faulty, storage: RetryingStorage
) -> None:
    inner.planned = [inner.busy() for _ in range(1000)]
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        storage.get_range("key", 2, 3)
    assert 0.5 <= time.monotonic() - started < 5
    where = re.escape(f"{storage.uri}/key bytes 2-4")
    assert re.match(
        rf"{where} could not be read for \d s, in {len(inner.times)} attempts; "
        r"the last: http://host answered 503 SlowDown\. Check that the storage is up",
        str(caught.value),
    )
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.__cause__, TryAgain)


def test_what_no_patience_helps_passes_at_once(inner: Faulty, storage: RetryingStorage) -> None:
    with pytest.raises(NotFound):
        storage.get("nothing")
    with pytest.raises(DataError, match="ends too early"):
        storage.get_range("key", 5, 10)
    refusal = inner.refused()
    inner.planned = [refusal]
    with pytest.raises(EnvironmentProblem) as caught:
        storage.get_range("key", 0, 1)
    assert caught.value is refusal
    assert storage.counters.snapshot().retries == 0


def test_a_refusal_is_borne_for_a_while_once_something_was_read(
    inner: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "REFUSED_PATIENCE_S", 0.3)
    storage = RetryingStorage(inner, retry_timeout_s=60)
    storage.get_range("key", 0, 1)
    inner.planned = [inner.refused(), inner.refused()]
    assert storage.get_range("key", 0, 2) == b"01"
    # An outage that is longer than this leaves a server that has to find its users again.
    inner.planned = [*[inner.busy() for _ in range(12)], inner.refused(), inner.refused()]
    assert storage.get_range("key", 0, 2) == b"01"
    inner.planned = [inner.refused() for _ in range(1000)]
    started = time.monotonic()
    with pytest.raises(DataError, match="refused with 403") as caught:
        storage.get_range("key", 0, 2)
    assert 0.3 <= time.monotonic() - started < 5
    assert isinstance(caught.value.__cause__, EnvironmentProblem)


def test_a_trouble_is_told_once_and_once_when_it_is_over(
    inner: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    storage = RetryingStorage(inner, retry_timeout_s=60)
    for _ in range(3):
        inner.planned = [inner.busy() for _ in range(5)]
        storage.get_range("key", 0, 1)
    first, last = caplog.messages
    assert first == (
        f"reads from {storage.uri} fail (http://host answered 503 SlowDown); "
        "retrying for up to 60 s"
    )
    assert last == f"reads from {storage.uri} again after 0 s"


def test_a_trouble_that_follows_soon_is_told_when_it_lasts(
    inner: Faulty, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "TELL_EVERY_S", 0.8)
    storage = RetryingStorage(inner, retry_timeout_s=60)
    for faults in (1, 1, 40):
        inner.planned = [inner.busy() for _ in range(faults)]
        storage.get_range("key", 0, 1)
    assert [" fail (" in line for line in caplog.messages] == [True, False, True, False]


def test_a_trouble_lasts_until_no_read_is_tried_again(
    inner: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads of other keys go on while a part of the storage is away."""
    inner.put("other", b"x")
    storage = RetryingStorage(inner, retry_timeout_s=60)
    inner.away = {"key"}
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(storage.get_range, "key", 0, 1)
        while len(inner.times) < 2:
            time.sleep(0.01)
        inner.planned = [inner.busy()] * 3
        while inner.planned:
            assert storage.get_range("other", 0, 1) == b"x"
        assert len(caplog.messages) == 1
        inner.away = set()
        assert stuck.result() == b"0"
    assert [" again after " in line for line in caplog.messages] == [False, True]


def test_the_oldest_request_says_what_it_waits_for(inner: Faulty) -> None:
    storage = RetryingStorage(inner, retry_timeout_s=60)
    assert storage.oldest_request() is None
    inner.planned = [inner.busy() for _ in range(1000)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(storage.get_range, "key", 4, 3)
        while len(inner.times) < 3:
            time.sleep(0.01)
        second = pool.submit(storage.get_range, "key", 0, 1)
        pattern = r"/key bytes 4-6, 0 s, attempt [2-9], last: http://host answered 503 SlowDown"
        assert re.search(pattern, storage.oldest_request() or "")
        inner.planned.clear()
        assert (first.result(), second.result()) == (b"456", b"0")
    assert storage.oldest_request() is None


def test_closing_ends_all_waiting(inner: Faulty) -> None:
    storage = RetryingStorage(inner, retry_timeout_s=600)
    inner.planned = [inner.busy() for _ in range(10_000)]
    with ThreadPoolExecutor(4) as pool:
        stuck = [pool.submit(storage.get_range, "key", 0, 1) for _ in range(4)]
        while len(inner.times) < 8:
            time.sleep(0.01)
        storage.close()
        for each in stuck:
            with pytest.raises(TryAgain, match="SlowDown"):
                each.result(timeout=5)
    with pytest.raises(TryAgain):
        storage.get_range("key", 0, 1)
    inner.planned.clear()
    assert storage.get_range("key", 0, 1) == b"0"


def test_all_else_is_the_storages_own(tmp_path: Path) -> None:
    storage = RetryingStorage(FolderStorage(tmp_path / "store"), retry_timeout_s=1)
    storage.put("a/1", b"one")
    assert storage.put_if_absent("a/2", b"two")
    assert not storage.put_if_absent("a/2", b"three")
    assert storage.list("a") == ["a/1", "a/2"]
    assert storage.size("a/1") == 3
    storage.delete("a/1")
    assert (storage.exists("a/1"), storage.exists("a/2")) == (False, True)


def test_a_pickled_one_reads_the_same_place_and_counts_anew(tmp_path: Path) -> None:
    storage = RetryingStorage(FolderStorage(tmp_path), retry_timeout_s=1)
    storage.put("key", b"0123456789")
    storage.get("key")
    again = pickle.loads(pickle.dumps(storage))
    assert again.counters.snapshot() == ReadCounts()
    assert again.get("key") == b"0123456789"
    assert again.counters.snapshot() == ReadCounts(bytes_read=10, requests=1)


def test_counters_lose_nothing_between_threads() -> None:
    counters, barrier = ReadCounters(), threading.Barrier(8)

    def count(_: int) -> None:
        barrier.wait()
        for _ in range(2000):
            counters.add(bytes_read=3, cache_hits=1, cache_misses=2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert counters.snapshot() == ReadCounts(
        bytes_read=48_000, cache_hits=16_000, cache_misses=32_000
    )
