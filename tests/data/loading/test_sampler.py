"""The order of samples: a permutation per epoch, the same for any number of workers."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.loading.sampler import NUM_STREAMS, SampleLocation, SampleOrder, permutation
from orchestrator.seeding import seed_of

shard_tables = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda t: sum(t) > 0)
seeds = st.integers(0, 2**40)


WINDOWS = [1, 3, 16, 1000]
MASK = (1 << 64) - 1


def slow_hash(number: int, key: int) -> int:
    """Output ``number``, from 1, of splitmix64 with the seed ``key``, as in its authors' C."""
    state = (key + number * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def slow_shuffle(size: int, key: int) -> list[int]:
    return sorted(range(size), key=lambda i: slow_hash(i + 1, key))


def slow_epoch(
    shard_sizes: list[int], seed: int, epoch: int, num_streams: int, window_size: int
) -> list[SampleLocation]:
    """The whole epoch written out with lists, as the docstring of sampler.py describes it."""
    shard_order = slow_shuffle(len(shard_sizes), seed_of("shards", seed, epoch))
    sequence = [SampleLocation(s, i) for s in shard_order for i in range(shard_sizes[s])]
    total = len(sequence)
    rotation = seed_of("turn", seed, epoch) % total
    sequence = sequence[rotation:] + sequence[:rotation]
    counts = Counter(position % num_streams for position in range(total))
    window_size = min(window_size, counts[0])
    runs, rest = {}, sequence
    for stream in slow_shuffle(num_streams, seed_of("lanes", seed, epoch)):
        runs[stream], rest = rest[: counts[stream]], rest[counts[stream] :]
    assert not rest
    streams = {}
    for stream, run in runs.items():
        samples: list[SampleLocation] = []
        start, length = 0, 1 + stream * window_size // num_streams
        while start < len(run):
            part = run[start : start + length]
            key = seed_of("window", seed, epoch, stream, start)
            samples += [part[k] for k in slow_shuffle(len(part), key)]
            start, length = start + length, window_size
        streams[stream] = samples
    return [streams[position % num_streams].pop(0) for position in range(total)]


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_sorts_numbers_by_splitmix64(size: int, key: int) -> None:
    assert permutation(size, key).tolist() == slow_shuffle(size, key)


def test_the_hash_is_splitmix64() -> None:
    """The first outputs for seed 1234567 as published with the reference code."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [slow_hash(n, 1234567) for n in (1, 2, 3, 4)] == known


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7])
def test_a_permutation_is_uniform(size: int) -> None:
    keys = 4000
    counts = Counter(
        pair for k in range(keys) for pair in enumerate(permutation(size, seed_of("t", k)).tolist())
    )
    expected = keys / size
    assert len(counts) == size * size
    assert all(abs(count - expected) < 0.15 * expected for count in counts.values())


@given(
    shard_tables,
    seeds,
    st.integers(0, 5),
    st.sampled_from([1, 3, 16, NUM_STREAMS]),
    st.sampled_from(WINDOWS),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_occurs_once_per_epoch(
    shard_sizes: list[int], seed: int, epoch: int, num_streams: int, window_size: int
) -> None:
    order = SampleOrder(shard_sizes, seed, num_streams=num_streams, window_size=window_size)
    total = sum(shard_sizes)
    locations = [order.locate(n) for n in range(epoch * total, (epoch + 1) * total)]
    everything = {SampleLocation(s, i) for s, size in enumerate(shard_sizes) for i in range(size)}
    assert len(locations) == len(everything)
    assert set(locations) == everything


@given(
    shard_tables,
    seeds,
    st.integers(0, 3),
    st.sampled_from([1, 7, NUM_STREAMS]),
    st.sampled_from(WINDOWS),
)
@settings(max_examples=40, deadline=None)
def test_random_access_equals_the_whole_epoch_written_out(
    shard_sizes: list[int], seed: int, epoch: int, num_streams: int, window_size: int
) -> None:
    order = SampleOrder(shard_sizes, seed, num_streams=num_streams, window_size=window_size)
    total = sum(shard_sizes)
    written_out = slow_epoch(shard_sizes, seed, epoch, num_streams, window_size)
    backwards = [order.locate(epoch * total + i) for i in reversed(range(total))]
    assert backwards[::-1] == written_out


@given(shard_tables, seeds, st.integers(0, 2000), st.sampled_from([1, 5, 16]))
@settings(max_examples=60, deadline=None)
def test_a_window_contains_its_samples(
    shard_sizes: list[int], seed: int, n: int, window_size: int
) -> None:
    num_streams = 7
    order = SampleOrder(shard_sizes, seed, num_streams=num_streams, window_size=window_size)
    epoch, position = divmod(n, order.num_samples)
    found = order.window_at(n)
    assert (found.epoch, found.stream) == (epoch, position % num_streams)
    assert found.start <= position // num_streams < found.end
    assert 1 <= len(found.shards) <= window_size
    for within in range(len(found.shards)):
        number = epoch * order.num_samples + (found.start + within) * num_streams
        location = order.locate(number + found.stream)
        assert location.shard == found.shards[within]
        assert location.index == found.indices[within]


def test_a_window_contains_consecutive_samples() -> None:
    order = SampleOrder([1000], seed=1, num_streams=10, window_size=25)
    for n in (0, 5, 99, 500, 999, 1700):
        indices = sorted(order.window_at(n).indices.tolist())
        gaps = [b - a for a, b in pairwise(indices)]
        assert gaps.count(1) >= len(gaps) - 1, "all consecutive, except at the end of the sequence"


@pytest.mark.slow
def test_streams_reach_their_next_windows_one_after_the_other() -> None:
    """So reading is spread evenly, and the first batches need few bytes."""
    order = SampleOrder([100_000], seed=1, num_streams=100, window_size=50)
    starts = [n for n in range(100_000) if order.window_at(n).start == n // 100]
    per_batch = Counter(n // 1000 for n in starts)
    assert all(15 <= per_batch[batch] <= 25 for batch in range(1, 99)), (
        "1000 samples are 20 windows"
    )
    first = sum(len(order.window_at(n).shards) for n in range(20))
    assert first <= 20 * 10


@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 5), seeds)
@settings(max_examples=20, deadline=None)
def test_the_ranks_of_any_world_size_share_one_order(
    world_size: int, share: int, seed: int
) -> None:
    sizes = [30, 17, 53]
    one_worker = SampleOrder(sizes, seed)
    alone = [one_worker.locate(n) for n in range(240)]
    batch_size = world_size * share
    together: dict[int, SampleLocation] = {}
    for rank in range(world_size):
        order = SampleOrder(sizes, seed)
        for start in range(0, 240, batch_size):
            for position in range(start + rank, min(start + batch_size, 240), world_size):
                together[position] = order.locate(position)
    assert [together[n] for n in range(240)] == alone


def test_epochs_and_seeds_differ() -> None:
    def epoch(number: int, seed: int) -> list[SampleLocation]:
        order = SampleOrder([500], seed)
        return [order.locate(number * 500 + i) for i in range(500)]

    orders = [epoch(0, 0), epoch(1, 0), epoch(2, 0), epoch(0, 1)]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            same = sum(a == b for a, b in zip(one, other, strict=True))
            assert same < 10, "two random orders of 500 agree in about one position"


def test_a_batch_of_a_small_set_comes_from_all_of_it() -> None:
    order = SampleOrder([1863], seed=0)
    tenths = Counter(order.locate(n).index * 10 // 1863 for n in range(64))
    assert len(tenths) == 10


@pytest.mark.slow
def test_a_rank_reads_few_of_many_shards() -> None:
    """Each of W workers reads about its share of the shards, not all of them."""
    sizes = [10] * 2400
    order = SampleOrder(sizes, seed=3)
    for rank in range(4):
        mine = {order.locate(n).shard for n in range(rank, sum(sizes), 4)}
        assert len(mine) <= 2400 // 4 + NUM_STREAMS // 4


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    """Checkpoints rely on it: a change here changes the samples of a resumed run."""
    small = SampleOrder([5, 3, 9], seed=7)
    large = SampleOrder([500, 300, 900], seed=7, num_streams=4, window_size=10)
    known = [
        (small, [(2, 6), (0, 1), (1, 2), (0, 0), (0, 0), (2, 6)], [0, 1, 2, 16, 17, 1000]),
        (large, [(0, 95), (2, 446), (2, 25), (0, 493), (2, 322)], [0, 1, 2, 1600, 1700]),
        (large, [(0, 86)], [10**9]),
    ]
    for order, locations, numbers in known:
        assert [(f.shard, f.index) for f in map(order.locate, numbers)] == locations


def test_the_samples_of_a_stream_are_in_neighbouring_shards() -> None:
    sizes = [100] * 30
    order = SampleOrder(sizes, seed=1, num_streams=30)
    stream = [order.locate(n) for n in range(4, 3000, 30)]
    assert len(stream) == 100
    assert len({location.shard for location in stream}) <= 2


def test_locating_one_of_100_million_samples_takes_memory_for_the_shards_only() -> None:
    """100,000 shards and 4,096 ranks; benchmarks/order.py measures the time."""
    few, many = (
        memory_of(SampleOrder(numpy.full(100_000, size), seed=1, num_streams=4096, window_size=40))
        for size in (10, 1000)
    )
    assert many < 6e6
    assert many < 1.1 * few, "a hundred times as many samples need no more"


def memory_of(order: SampleOrder) -> int:
    """Peak memory in bytes while samples all over two epochs are located."""
    tracemalloc.start()
    for n in range(0, 2 * order.num_samples, order.num_samples // 50):
        order.locate(n)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_4096_ranks_share_a_global_batch_of_100_million_samples() -> None:
    order = SampleOrder(numpy.full(100_000, 1000), seed=1, num_streams=4096, window_size=40)
    start = 54_321 * 4096
    together = {order.locate(start + rank) for rank in range(4096)}
    assert len(together) == 4096
    alone = SampleOrder(numpy.full(100_000, 1000), seed=1, num_streams=4096, window_size=40)
    assert all(alone.locate(start + n) in together for n in range(0, 4096, 100))
    assert len({location.shard for location in together}) > 3500, "from all over the set"
