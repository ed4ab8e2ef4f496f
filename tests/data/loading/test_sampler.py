"""The order of samples: a permutation of each epoch, the same for any number of workers."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.loading.sampler import LANES, Order, Place, shuffled
from orchestrator.seeding import seed_of

shard_tables = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda t: sum(t) > 0)
seeds = st.integers(0, 2**40)


WINDOWS = [1, 3, 16, 1000]
MASK = (1 << 64) - 1


def slow_hash(number: int, key: int) -> int:
    """Output ``number``, from 1, of splitmix64 that starts from ``key``, as its authors' C."""
    state = (key + number * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def slow_shuffle(size: int, key: int) -> list[int]:
    return sorted(range(size), key=lambda i: slow_hash(i + 1, key))


def slow_epoch(
    shard_sizes: list[int], seed: int, epoch: int, lanes: int, window: int
) -> list[Place]:
    """The whole epoch written out with lists, as the docstring of order.py tells it."""
    shard_order = slow_shuffle(len(shard_sizes), seed_of("shards", seed, epoch))
    sequence = [Place(s, i) for s in shard_order for i in range(shard_sizes[s])]
    total = len(sequence)
    turn = seed_of("turn", seed, epoch) % total
    sequence = sequence[turn:] + sequence[:turn]
    counts = Counter(position % lanes for position in range(total))
    window = min(window, counts[0])
    runs, rest = {}, sequence
    for lane in slow_shuffle(lanes, seed_of("lanes", seed, epoch)):
        runs[lane], rest = rest[: counts[lane]], rest[counts[lane] :]
    assert not rest
    walks = {}
    for lane, run in runs.items():
        walk, start, length = [], 0, 1 + lane * window // lanes
        while start < len(run):
            part = run[start : start + length]
            key = seed_of("window", seed, epoch, lane, start)
            walk += [part[k] for k in slow_shuffle(len(part), key)]
            start, length = start + length, window
        walks[lane] = walk
    return [walks[position % lanes].pop(0) for position in range(total)]


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_a_shuffle_sorts_numbers_by_splitmix64(size: int, key: int) -> None:
    assert shuffled(size, key).tolist() == slow_shuffle(size, key)


def test_the_hash_is_splitmix64() -> None:
    """The first outputs for seed 1234567 as published with the reference code."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [slow_hash(n, 1234567) for n in (1, 2, 3, 4)] == known


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7])
def test_a_shuffle_takes_each_element_everywhere_about_equally_often(size: int) -> None:
    keys = 4000
    counts = Counter(
        (i, place) for k in range(keys) for i, place in enumerate(shuffled(size, seed_of("t", k)))
    )
    expected = keys / size
    assert len(counts) == size * size
    assert all(abs(count - expected) < 0.15 * expected for count in counts.values())


@given(
    shard_tables,
    seeds,
    st.integers(0, 5),
    st.sampled_from([1, 3, 16, LANES]),
    st.sampled_from(WINDOWS),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_an_epoch(
    shard_sizes: list[int], seed: int, epoch: int, lanes: int, window: int
) -> None:
    order, total = Order(shard_sizes, seed, lanes=lanes, window=window), sum(shard_sizes)
    places = [order.at(n) for n in range(epoch * total, (epoch + 1) * total)]
    everything = {Place(s, i) for s, size in enumerate(shard_sizes) for i in range(size)}
    assert len(places) == len(everything)
    assert set(places) == everything


@given(
    shard_tables,
    seeds,
    st.integers(0, 3),
    st.sampled_from([1, 7, LANES]),
    st.sampled_from(WINDOWS),
)
@settings(max_examples=40, deadline=None)
def test_random_access_agrees_with_the_order_written_out(
    shard_sizes: list[int], seed: int, epoch: int, lanes: int, window: int
) -> None:
    order, total = Order(shard_sizes, seed, lanes=lanes, window=window), sum(shard_sizes)
    written_out = slow_epoch(shard_sizes, seed, epoch, lanes, window)
    backwards = [order.at(epoch * total + i) for i in reversed(range(total))]
    assert backwards[::-1] == written_out


@given(shard_tables, seeds, st.integers(0, 2000), st.sampled_from([1, 5, 16]))
@settings(max_examples=60, deadline=None)
def test_a_window_is_the_one_that_its_samples_say_they_are_in(
    shard_sizes: list[int], seed: int, n: int, window: int
) -> None:
    lanes = 7
    order = Order(shard_sizes, seed, lanes=lanes, window=window)
    epoch, position = divmod(n, order.num_samples)
    found = order.window(n)
    assert (found.epoch, found.lane) == (epoch, position % lanes)
    assert found.start <= position // lanes < found.end
    assert 1 <= len(found.shards) <= window
    for within in range(len(found.shards)):
        number = epoch * order.num_samples + (found.start + within) * lanes + found.lane
        assert order.at(number) == found.place(within)


def test_a_window_is_a_run_of_neighbours() -> None:
    order = Order([1000], seed=1, lanes=10, window=25)
    for n in (0, 5, 99, 500, 999, 1700):
        indices = sorted(order.window(n).indices.tolist())
        gaps = [b - a for a, b in pairwise(indices)]
        assert gaps.count(1) >= len(gaps) - 1, "all neighbours, but where the turn comes round"


def test_lanes_come_to_their_next_windows_one_after_the_other() -> None:
    """So that reading is spread evenly, and the first batches need few bytes."""
    order = Order([100_000], seed=1, lanes=100, window=50)
    begun = [n for n in range(100_000) if order.window(n).start == n // 100]
    per_batch = Counter(n // 1000 for n in begun)
    assert all(15 <= per_batch[batch] <= 25 for batch in range(1, 99)), (
        "1000 samples are 20 windows"
    )
    first = sum(len(order.window(n).shards) for n in range(20))
    assert first <= 20 * 10


@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 5), seeds)
@settings(max_examples=20, deadline=None)
def test_the_ranks_of_any_world_size_together_follow_one_order(
    world_size: int, share: int, seed: int
) -> None:
    sizes = [30, 17, 53]
    one_worker = Order(sizes, seed)
    alone = [one_worker.at(n) for n in range(240)]
    batch_size = world_size * share
    together: dict[int, Place] = {}
    for rank in range(world_size):
        order = Order(sizes, seed)
        for start in range(0, 240, batch_size):
            for position in range(start + rank, min(start + batch_size, 240), world_size):
                together[position] = order.at(position)
    assert [together[n] for n in range(240)] == alone


def test_epochs_and_seeds_differ() -> None:
    def epoch(number: int, seed: int) -> list[Place]:
        order = Order([500], seed)
        return [order.at(number * 500 + i) for i in range(500)]

    orders = [epoch(0, 0), epoch(1, 0), epoch(2, 0), epoch(0, 1)]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            same = sum(a == b for a, b in zip(one, other, strict=True))
            assert same < 10, "two random orders of 500 agree in about one place"


def test_a_batch_of_a_small_set_is_drawn_from_all_of_it() -> None:
    order = Order([1863], seed=0)
    tenths = Counter(order.at(n).index * 10 // 1863 for n in range(64))
    assert len(tenths) == 10


def test_a_rank_reads_few_of_many_shards() -> None:
    """With W workers each reads about its share of the shards, not all of them."""
    sizes = [10] * 2400
    order = Order(sizes, seed=3)
    for rank in range(4):
        mine = {order.at(n).shard for n in range(rank, sum(sizes), 4)}
        assert len(mine) <= 2400 // 4 + LANES // 4


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    """Checkpoints count on it: a change here changes what a resumed run sees."""
    small, large = Order([5, 3, 9], seed=7), Order([500, 300, 900], seed=7, lanes=4, window=10)
    known = [
        (small, [(2, 6), (0, 1), (1, 2), (0, 0), (0, 0), (2, 6)], [0, 1, 2, 16, 17, 1000]),
        (large, [(0, 95), (2, 446), (2, 25), (0, 493), (2, 322)], [0, 1, 2, 1600, 1700]),
        (large, [(0, 86)], [10**9]),
    ]
    for order, places, numbers in known:
        assert [(p.shard, p.index) for p in map(order.at, numbers)] == places


def test_a_lanes_run_lies_in_neighbouring_places() -> None:
    sizes = [100] * 30
    order = Order(sizes, seed=1, lanes=30)
    lane = [order.at(n) for n in range(4, 3000, 30)]
    assert len(lane) == 100
    assert len({place.shard for place in lane}) <= 2


def test_a_place_among_100_million_samples_takes_memory_for_the_shards_alone() -> None:
    """100,000 shards and 4,096 ranks; benchmarks/order.py has the times."""
    few, many = (
        memory_of(Order(numpy.full(100_000, size), seed=1, lanes=4096, window=40))
        for size in (10, 1000)
    )
    assert many < 6e6
    assert many < 1.1 * few, "a hundred times the samples take no more"


def memory_of(order: Order) -> int:
    """Bytes at most while places all over two epochs are found."""
    tracemalloc.start()
    for n in range(0, 2 * order.num_samples, order.num_samples // 50):
        order.at(n)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_4096_ranks_draw_one_global_batch_of_100_million_samples() -> None:
    order = Order(numpy.full(100_000, 1000), seed=1, lanes=4096, window=40)
    start = 54_321 * 4096
    together = {order.at(start + rank) for rank in range(4096)}
    assert len(together) == 4096
    alone = Order(numpy.full(100_000, 1000), seed=1, lanes=4096, window=40)
    assert all(alone.at(start + n) in together for n in range(0, 4096, 100))
    assert len({place.shard for place in together}) > 3500, "from all over the set"
