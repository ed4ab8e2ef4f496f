"""Which reads are retried, for how long, and what is logged."""

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
from orchestrator.storage.retrying import ReadCounters, ReadCounts, RetryingStorage
from support.waiting import wait_until


class Faulty(FolderStorage):
    """A folder whose reads raise the ``planned`` errors one after the other before they work."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.planned: list[OrchestratorError] = []
        self.unavailable: set[str] = set()
        """Keys whose reads fail."""
        self.times: list[float] = []
        """Start of each attempt."""
        self.put("key", b"0123456789")

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.times.append(time.monotonic())
        if key in self.unavailable:
            raise self.busy()
        if self.planned:
            raise self.planned.pop(0)
        return super().get_range(key, start, length)

    def busy(self) -> TryAgain:
        return TryAgain(f"{self.uri}: http://host answered 503 SlowDown")

    def refused(self) -> EnvironmentProblem:
        return EnvironmentProblem(f"{self.uri}: http://host refused with 403; check AWS_PROFILE")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "MIN_PAUSE_S", 0.02)
    monkeypatch.setattr(retrying, "MAX_PAUSE_S", 0.1)


@pytest.fixture
def inner(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path)


@pytest.fixture
def storage(inner: Faulty) -> RetryingStorage:
    return RetryingStorage(inner, timeout_s=0.5)


def test_a_transient_error_is_retried_and_counted(inner: Faulty, storage: RetryingStorage) -> None:
    inner.planned = [inner.busy() for _ in range(4)]
    assert storage.get_range("key", 2, 3) == b"234"
    assert storage.get("key") == b"0123456789"
    assert storage.counters.snapshot() == ReadCounts(bytes_read=13, requests=6, retries=4)


class RecordedPauses(threading.Event):
    """An event that records how long it should be waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return False


def test_the_pauses_are_random_within_their_bounds(
    inner: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "MAX_PAUSE_S", 0.06)
    storage = RetryingStorage(inner, timeout_s=60)
    storage._closed = recorded = RecordedPauses()
    inner.planned = [inner.busy() for _ in range(200)]
    storage.get_range("key", 0, 1)
    assert len(recorded.pauses) == 200
    assert recorded.pauses[0] == 0.02
    assert 0.02 <= min(recorded.pauses) < 0.025
    assert 0.055 < max(recorded.pauses) <= 0.06
    assert len(set(recorded.pauses)) > 100


def test_the_timeout_raises_a_data_error_with_the_details(
    inner: Faulty, storage: RetryingStorage
) -> None:
    inner.planned = [inner.busy() for _ in range(1000)]
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        storage.get_range("key", 2, 3)
    assert time.monotonic() - started >= 0.5
    where = re.escape(f"{storage.uri}/key bytes 2-4")
    assert re.match(
        rf"{where} could not be read for \d s, in {len(inner.times)} attempts; "
        r"the last error: http://host answered 503 SlowDown\. Check that the storage is up",
        str(caught.value),
    )
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.__cause__, TryAgain)


def test_permanent_errors_are_raised_at_once(inner: Faulty, storage: RetryingStorage) -> None:
    with pytest.raises(NotFound):
        storage.get("nothing")
    with pytest.raises(DataError, match="is truncated"):
        storage.get_range("key", 5, 10)
    refusal = inner.refused()
    inner.planned = [refusal]
    with pytest.raises(EnvironmentProblem) as caught:
        storage.get_range("key", 0, 1)
    assert caught.value is refusal
    assert storage.counters.snapshot().retries == 0


def test_a_refusal_is_retried_for_a_while_after_a_successful_read(
    inner: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "REFUSAL_TIMEOUT_S", 0.3)
    storage = RetryingStorage(inner, timeout_s=60)
    storage.get_range("key", 0, 1)
    inner.planned = [inner.refused(), inner.refused()]
    assert storage.get_range("key", 0, 2) == b"01"
    # After a longer outage a server may first refuse users that it does not know yet.
    inner.planned = [*[inner.busy() for _ in range(12)], inner.refused(), inner.refused()]
    assert storage.get_range("key", 0, 2) == b"01"
    inner.planned = [inner.refused() for _ in range(1000)]
    started = time.monotonic()
    with pytest.raises(DataError, match="refused with 403") as caught:
        storage.get_range("key", 0, 2)
    assert time.monotonic() - started >= 0.3
    assert isinstance(caught.value.__cause__, EnvironmentProblem)


def test_an_outage_is_logged_when_it_starts_and_when_it_ends(
    inner: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    storage = RetryingStorage(inner, timeout_s=60)
    for _ in range(3):
        inner.planned = [inner.busy() for _ in range(5)]
        storage.get_range("key", 0, 1)
    first, last = caplog.messages
    assert first == (
        f"reads from {storage.uri} fail (http://host answered 503 SlowDown); "
        "retrying for up to 60 s"
    )
    assert last == f"reads from {storage.uri} work again after 0 s"


def test_an_outage_soon_after_another_is_logged_only_if_it_lasts(
    inner: Faulty, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "LOG_INTERVAL_S", 0.8)
    storage = RetryingStorage(inner, timeout_s=60)
    for faults in (1, 1, 40):
        inner.planned = [inner.busy() for _ in range(faults)]
        storage.get_range("key", 0, 1)
    assert [" fail (" in line for line in caplog.messages] == [True, False, True, False]


def test_an_outage_ends_when_no_read_is_being_retried(
    inner: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads of other keys continue while one key is unavailable."""
    inner.put("other", b"x")
    storage = RetryingStorage(inner, timeout_s=60)
    inner.unavailable = {"key"}
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(storage.get_range, "key", 0, 1)
        wait_until(lambda: len(inner.times) >= 2, 20, "a retry", poll_s=0.01)
        inner.planned = [inner.busy()] * 3
        while inner.planned:
            assert storage.get_range("other", 0, 1) == b"x"
        assert len(caplog.messages) == 1
        inner.unavailable = set()
        assert stuck.result() == b"0"
    assert [" work again after " in line for line in caplog.messages] == [False, True]


def test_the_oldest_request_is_described(inner: Faulty) -> None:
    storage = RetryingStorage(inner, timeout_s=60)
    assert storage.oldest_request() is None
    inner.planned = [inner.busy() for _ in range(1000)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(storage.get_range, "key", 4, 3)
        wait_until(lambda: len(inner.times) >= 3, 20, "two retries", poll_s=0.01)
        second = pool.submit(storage.get_range, "key", 0, 1)
        pattern = r"/key bytes 4-6, \d s, attempt \d+, last: http://host answered 503 SlowDown"
        assert re.search(pattern, storage.oldest_request() or "")
        inner.planned.clear()
        assert (first.result(), second.result()) == (b"456", b"0")
    assert storage.oldest_request() is None


def test_close_interrupts_all_pauses(inner: Faulty) -> None:
    storage = RetryingStorage(inner, timeout_s=600)
    inner.planned = [inner.busy() for _ in range(10_000)]
    with ThreadPoolExecutor(4) as pool:
        stuck = [pool.submit(storage.get_range, "key", 0, 1) for _ in range(4)]
        wait_until(lambda: len(inner.times) >= 8, 20, "retries", poll_s=0.01)
        storage.close()
        for each in stuck:
            with pytest.raises(TryAgain, match="SlowDown"):
                each.result(timeout=20)
    with pytest.raises(TryAgain):
        storage.get_range("key", 0, 1)
    inner.planned.clear()
    assert storage.get_range("key", 0, 1) == b"0"


def test_a_folder_that_is_unmounted_for_a_while_delays_reads_and_does_not_end_them(
    tmp_path: Path,
) -> None:
    storage = RetryingStorage(FolderStorage(tmp_path / "set"), timeout_s=60)
    storage.put("000000.tar", b"0123456789")
    storage.put("index.json", b"{}")
    for leave_empty in (False, True):
        (tmp_path / "set").rename(tmp_path / "away")
        if leave_empty:
            (tmp_path / "set").mkdir()
        threading.Timer(0.5, (tmp_path / "away").rename, [tmp_path / "set"]).start()
        assert storage.get_range("000000.tar", 2, 3) == b"234"
    assert storage.counters.snapshot().retries > 0


def test_other_methods_are_delegated(tmp_path: Path) -> None:
    storage = RetryingStorage(FolderStorage(tmp_path / "store"), timeout_s=1)
    storage.put("a/1", b"one")
    assert storage.put_if_absent("a/2", b"two")
    assert not storage.put_if_absent("a/2", b"three")
    assert storage.list("a") == ["a/1", "a/2"]
    assert storage.size("a/1") == 3
    storage.delete("a/1")
    assert (storage.exists("a/1"), storage.exists("a/2")) == (False, True)


def test_a_pickled_storage_reads_the_same_folder_and_counts_from_zero(tmp_path: Path) -> None:
    storage = RetryingStorage(FolderStorage(tmp_path), timeout_s=1)
    storage.put("key", b"0123456789")
    storage.get("key")
    again = pickle.loads(pickle.dumps(storage))
    assert again.counters.snapshot() == ReadCounts()
    assert again.get("key") == b"0123456789"
    assert again.counters.snapshot() == ReadCounts(bytes_read=10, requests=1)


def test_counters_are_safe_between_threads() -> None:
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
