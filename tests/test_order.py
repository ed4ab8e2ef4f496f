"""The order of samples: a permutation of each epoch, the same for any number of workers."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.order import LANES, Order, Place, permuted
from orchestrator.randomness import seed_of

shard_tables = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda t: sum(t) > 0)
seeds = st.integers(0, 2**40)


def slow_epoch(shard_sizes: list[int], seed: int, epoch: int, lanes: int) -> list[Place]:
    """The whole epoch written out with lists, as the docstring of order.py tells it."""
    shard_order = sorted_by_permutation(len(shard_sizes), seed_of("shards", seed, epoch))
    sequence = [Place(s, i) for s in shard_order for i in range(shard_sizes[s])]
    total = len(sequence)
    counts = Counter(position % lanes for position in range(total))
    runs, rest = {}, sequence
    for lane in sorted_by_permutation(lanes, seed_of("lanes", seed, epoch)):
        runs[lane], rest = rest[: counts[lane]], rest[counts[lane] :]
    assert not rest
    shuffled = {
        lane: [run[k] for k in sorted_by_permutation(len(run), seed_of("lane", seed, epoch, lane))]
        for lane, run in runs.items()
    }
    return [shuffled[position % lanes].pop(0) for position in range(total)]


def sorted_by_permutation(size: int, key: int) -> list[int]:
    return [permuted(i, size, key) for i in range(size)]


@given(st.integers(1, 3000), seeds)
@settings(max_examples=60, deadline=None)
def test_a_keyed_permutation_reaches_every_place_once(size: int, key: int) -> None:
    assert sorted(sorted_by_permutation(size, key)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7])
def test_a_keyed_permutation_takes_each_element_everywhere_about_equally_often(size: int) -> None:
    keys = 4000
    counts = Counter(
        (i, permuted(i, size, seed_of("t", k))) for i in range(size) for k in range(keys)
    )
    expected = keys / size
    assert len(counts) == size * size
    assert all(abs(count - expected) < 0.15 * expected for count in counts.values())


@given(shard_tables, seeds, st.integers(0, 5), st.sampled_from([1, 3, 16, LANES]))
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_an_epoch(
    shard_sizes: list[int], seed: int, epoch: int, lanes: int
) -> None:
    order, total = Order(shard_sizes, seed, lanes), sum(shard_sizes)
    places = [order.at(n) for n in range(epoch * total, (epoch + 1) * total)]
    everything = {Place(s, i) for s, size in enumerate(shard_sizes) for i in range(size)}
    assert len(places) == len(everything)
    assert set(places) == everything


@given(shard_tables, seeds, st.integers(0, 3), st.sampled_from([1, 7, LANES]))
@settings(max_examples=40, deadline=None)
def test_random_access_agrees_with_the_order_written_out(
    shard_sizes: list[int], seed: int, epoch: int, lanes: int
) -> None:
    order, total = Order(shard_sizes, seed, lanes), sum(shard_sizes)
    written_out = slow_epoch(shard_sizes, seed, epoch, lanes)
    backwards = [order.at(epoch * total + i) for i in reversed(range(total))]
    assert backwards[::-1] == written_out


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
    order = Order([5, 3, 9], seed=7)
    assert [(p.shard, p.index) for p in map(order.at, [0, 1, 2, 16, 17, 1000])] == [
        (0, 3),
        (2, 7),
        (1, 2),
        (2, 6),
        (2, 4),
        (2, 3),
    ]


def test_a_lanes_run_lies_in_neighbouring_places() -> None:
    sizes = [100] * 30
    order = Order(sizes, seed=1, lanes=30)
    lane = [order.at(n) for n in range(4, 3000, 30)]
    assert len(lane) == 100
    assert len({place.shard for place in lane}) <= 2
