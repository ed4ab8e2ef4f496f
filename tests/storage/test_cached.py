"""The disk cache returns the right bytes whatever happens to its files, within its limit."""

import contextlib
import hashlib
import logging
import multiprocessing
import os
import pickle
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound
from orchestrator.storage.cached import BLOCK, HEADER, CachedStorage, CacheEntry
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.retrying import ReadCounts, RetryingStorage

DATA = Random(1).randbytes(5 * BLOCK + 12_345)
LARGE = Random(2).randbytes(30 * BLOCK)
PLENTY = 1 << 30


def entry_of(data: bytes) -> CacheEntry:
    return CacheEntry(hashlib.sha256(data).hexdigest(), len(data))


class Cache:
    """A cache in front of a folder, with counted reads."""

    def __init__(self, top: Path, limit_bytes: int = PLENTY, data: bytes = DATA) -> None:
        self.folder = top / "cache"
        self.entries = {"000000.tar": entry_of(data)}
        store = FolderStorage(top / "store")
        store.put("000000.tar", data)
        self.inner = RetryingStorage(store, timeout_s=0)
        self.storage = CachedStorage(
            self.inner, self.folder, limit_bytes, self.entries, self.inner.counters
        )

    def read(self, start: int, length: int) -> bytes:
        return self.storage.get_range("000000.tar", start, length)

    @property
    def counts(self) -> ReadCounts:
        return self.storage.counters.snapshot()

    @property
    def blocks(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.block"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_a_range_is_a_slice_of_the_object(cache: Cache) -> None:
    draw = Random(3)
    for _ in range(200):
        start = draw.randrange(len(DATA))
        length = draw.randrange(min(len(DATA) - start, 3 * BLOCK) + 1)
        assert cache.read(start, length) == DATA[start : start + length]
    for start, length in ((0, len(DATA)), (BLOCK, BLOCK), (len(DATA) - 1, 1), (BLOCK - 1, 2)):
        assert cache.read(start, length) == DATA[start : start + length]
    assert cache.counts.cache_misses == cache.counts.bytes_read // BLOCK + 1 == 6


def test_the_blocks_contain_the_object_once(cache: Cache) -> None:
    cache.read(0, len(DATA))
    assert b"".join(path.read_bytes()[HEADER.size :] for path in cache.blocks) == DATA
    assert {path.parent.name for path in cache.blocks} == {hashlib.sha256(DATA).hexdigest()}
    assert sorted(p.name for p in cache.folder.rglob("*") if p.is_file()) == [
        ".lock",
        *(f"{n:06}.block" for n in range(6)),
    ]


def test_adjacent_missing_blocks_are_read_at_once(cache: Cache) -> None:
    cache.read(2 * BLOCK + 5, 10)
    assert cache.counts == ReadCounts(bytes_read=BLOCK, requests=1, cache_misses=1)
    cache.read(0, len(DATA))
    assert cache.counts == ReadCounts(
        bytes_read=len(DATA), requests=3, cache_hits=1, cache_misses=6
    ), "one read before the cached block and one after it"
    cache.read(0, len(DATA))
    assert cache.counts.requests == 3
    assert cache.counts.cache_hits == 7


def test_threads_that_miss_the_same_block_fetch_it_once(cache: Cache) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.read(n * 1000, 1000), range(64)))
    assert cache.counts.requests == 1


def test_unlisted_objects_and_invalid_ranges_bypass_the_cache(cache: Cache) -> None:
    cache.storage.put("index.json", b"{}")
    assert cache.storage.get_range("index.json", 0, 2) == b"{}"
    assert cache.storage.get("000000.tar") == DATA
    assert cache.blocks == []
    with pytest.raises(DataError, match="is truncated"):
        cache.read(len(DATA) - 1, 2)
    assert cache.storage.list() == ["000000.tar", "index.json"]
    assert cache.storage.size("index.json") == 2
    cache.storage.delete("index.json")
    assert not cache.storage.exists("index.json")


def test_two_versions_of_an_object_are_not_mixed(tmp_path: Path) -> None:
    other = Random(9).randbytes(3 * BLOCK)
    assert Cache(tmp_path).read(0, 2 * BLOCK) == DATA[: 2 * BLOCK]
    assert Cache(tmp_path, data=other).read(100, 2 * BLOCK) == other[100 : 100 + 2 * BLOCK]
    again = Cache(tmp_path)
    assert again.read(0, 2 * BLOCK) == DATA[: 2 * BLOCK]
    assert again.counts.requests == 0


def flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


@pytest.mark.parametrize(
    "corrupt",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:5], id="cut in its header"),
        pytest.param(lambda content: content[:-1], id="cut"),
        pytest.param(lambda content: content + b"x", id="too long"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        *(
            pytest.param(lambda content, at=at: flipped(content, at), id=f"bit {at}")
            for at in (0, 4, 8, 11, 12, 5000, -1 % (BLOCK + HEADER.size))
        ),
    ],
)
def test_a_corrupt_block_is_fetched_again(cache: Cache, corrupt: Callable[[bytes], bytes]) -> None:
    cache.read(0, 3 * BLOCK)
    whole = cache.blocks[1].read_bytes()
    cache.blocks[1].write_bytes(corrupt(whole))
    assert cache.read(0, 3 * BLOCK) == DATA[: 3 * BLOCK]
    assert cache.counts.cache_misses == 4
    assert cache.blocks[1].read_bytes() == whole


def test_a_corrupt_block_is_removed(cache: Cache) -> None:
    cache.read(0, 2 * BLOCK)
    cache.blocks[0].write_bytes(b"corrupt")
    cache.inner.delete("000000.tar")
    with pytest.raises(NotFound):
        cache.read(0, 2 * BLOCK)
    assert [path.name for path in cache.blocks] == ["000001.block"]


def test_invalidated_blocks_are_fetched_again(cache: Cache) -> None:
    cache.read(0, len(DATA))
    cache.storage.invalidate("000000.tar", BLOCK + 7, BLOCK)
    assert [int(path.stem) for path in cache.blocks] == [0, 3, 4, 5]
    cache.storage.invalidate("000000.tar", BLOCK + 7, BLOCK)
    cache.storage.invalidate("unknown", 0, 1)
    assert cache.read(0, len(DATA)) == DATA
    assert cache.counts.requests == 2


def use(path: Path, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def test_the_least_recently_used_blocks_are_evicted_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.read(0, 5 * BLOCK)
    for number, path in enumerate(cache.blocks):
        use(path, seconds_ago=1000 * number)
    foreign = [tmp_path / "cache" / "notes.txt", cache.blocks[0].parent.parent / "x" / "1.block"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(3 * BLOCK))
    cache.read(4 * BLOCK, 1)
    assert time.time() - cache.blocks[4].stat().st_mtime < 60, "it was just used"
    small = Cache(tmp_path, limit_bytes=4 * BLOCK)
    small.read(0, 1)
    left = [int(p.stem) for p in cache.blocks if p.parent.name != "x"]
    assert left == [0, 1, 4]
    assert all(path.stat().st_size == 3 * BLOCK for path in foreign)


def test_the_time_of_use_is_updated_at_most_once_a_minute(cache: Cache) -> None:
    cache.read(0, 1)
    use(cache.blocks[0], seconds_ago=30)
    before = cache.blocks[0].stat().st_mtime_ns
    cache.read(0, 1)
    assert cache.blocks[0].stat().st_mtime_ns == before
    use(cache.blocks[0], seconds_ago=90)
    cache.read(0, 1)
    assert cache.blocks[0].stat().st_mtime_ns > before


def test_the_cache_stays_within_its_limit_while_much_more_is_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=2 * BLOCK)
    for number in [*range(6)] * 3:
        start = number * BLOCK
        assert cache.read(start, 1000) == DATA[start : start + 1000]
        assert len(cache.blocks) <= 3


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.read(0, 1)
    old, new = (cache.blocks[0].with_name(f"{name}.aside") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    use(old, seconds_ago=7200)
    empty = cache.folder / ("0" * 64)
    empty.mkdir()
    Cache(tmp_path).read(0, 1)
    assert [path.exists() for path in (old, new, empty)] == [False, True, False]


def test_an_unusable_folder_costs_a_warning_and_no_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("in the way")
    cache = Cache(tmp_path)
    with caplog.at_level(logging.WARNING, logger="orchestrator"):
        for start in range(0, 3 * BLOCK, BLOCK):
            assert cache.read(start, 2000) == DATA[start : start + 2000]
    (line,) = caplog.messages
    assert line.startswith(f"disabled the cache in {tmp_path}/cache (")
    assert not list(tmp_path.rglob("*.block"))


@contextlib.contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """Like a full disk: the system accepts part of a write and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_warning_and_no_read(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.read(0, 1)
    with (
        caplog.at_level(logging.WARNING, logger="orchestrator"),
        no_file_larger_than(BLOCK // 2),
    ):
        for start in range(0, 5 * BLOCK, BLOCK):
            assert cache.read(start, 2000) == DATA[start : start + 2000]
    assert len(caplog.messages) == 1
    assert [path.name for path in cache.blocks[0].parent.iterdir()] == ["000000.block"]


def test_a_pickled_cache_uses_the_same_folder_and_counts_from_zero(cache: Cache) -> None:
    cache.read(0, 3 * BLOCK)
    again: CachedStorage = pickle.loads(pickle.dumps(cache.storage))
    assert again.get_range("000000.tar", 5, 4 * BLOCK) == DATA[5 : 5 + 4 * BLOCK]
    assert again.counters.snapshot() == ReadCounts(
        bytes_read=2 * BLOCK, requests=1, cache_hits=3, cache_misses=2
    ), "the cache and its inner storage share their counters"


def hammer(storage: CachedStorage, seed: int, seconds: float) -> None:
    """Read at random in threads and compare; runs in a separate process."""

    def compare(draw: Random) -> int:
        reads = 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            start = draw.randrange(len(LARGE))
            length = min(draw.randrange(1, 2 * BLOCK), len(LARGE) - start)
            assert storage.get_range("000000.tar", start, length) == LARGE[start : start + length]
            if draw.random() < 0.1:
                storage.invalidate("000000.tar", start, length)
            reads += 1
        return reads

    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(compare, [Random(f"{seed} {n}") for n in range(3)]))
    assert min(counts) > 3


def test_processes_that_share_a_tiny_cache_read_the_right_bytes(tmp_path: Path) -> None:
    limit = 3 * BLOCK
    cache = Cache(tmp_path, limit, LARGE)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=hammer, args=(cache.storage, seed, 1.5)) for seed in range(3)]
    for worker in workers:
        worker.start()
    most = 0
    while any(worker.is_alive() for worker in workers):
        with contextlib.suppress(FileNotFoundError):
            most = max(most, sum(path.stat().st_size for path in cache.blocks))
        time.sleep(0.01)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 0 < most < len(LARGE) / 2, "the limit, plus what nine threads read at a time"
    Cache(tmp_path, limit, LARGE).read(0, 1)
    assert sum(path.stat().st_size for path in cache.blocks) <= limit + BLOCK
    assert not list(cache.folder.rglob("*.aside"))
