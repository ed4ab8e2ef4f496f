"""Which set each image comes from: against a slow second writing, in proportion, from anywhere."""

import math
from collections import Counter
from fractions import Fraction
from itertools import islice

import numpy
import pytest

from orchestrator.data.loading.mixture import Draw, Mixture, shares_of
from orchestrator.seeding import seed_of

PHI = (math.isqrt(5 << 128) - (1 << 64)) // 2
"""The golden ratio's fraction, times 2**64 and rounded down."""


def quotients(above: int, below: int) -> list[int]:
    """The continued fraction of above / below, without its integer part, up to 9 digits."""
    found, rest, size = [], above % below, 1
    while rest and size < 10**9:
        found.append(below // rest)
        below, rest = rest, below % rest
        size *= found[-1] + 1
    return found or [0]


def slow_draws(
    weights: list[float], seed: int, lanes: int, streams: list[int], count: int
) -> list[Draw]:
    """Go through the positions one by one, with exact fractions."""
    near, turn = lanes * PHI >> 64, 1 << 64
    ks = range(near - 63, near + 64)
    coprime = [k for k in ks if math.gcd(k, lanes) == 1]
    distance = min(coprime, key=lambda k: (max(quotients(k, lanes)), k))
    steps = [k * turn + PHI for k in ks if 0 <= k < lanes]
    step = min(steps, key=lambda k: (max(quotients(k, lanes * turn)), k)) // lanes
    taken, draws = Counter[tuple[int, int]](), []
    total = sum(Fraction(str(w)) for w in weights)
    for n in range(count):
        lane = n % lanes
        point = seed_of("mixture", seed) + lane * distance % lanes * turn // lanes
        point = (point + n // lanes * step) % turn
        ends = (sum(Fraction(str(w)) for w in weights[: k + 1]) for k in range(len(weights)))
        part = next(k for k, end in enumerate(ends) if point < int(end / total * turn))
        stream = lane % streams[part]
        draws.append(Draw(n, part, stream, taken[part, stream] * streams[part] + stream))
        taken[part, stream] += 1
    return draws


CASES = [
    ([3, 1], 96, [96, 24]),
    ([1, 1, 1], 12, [6, 3, 12]),
    ([0.1, 0.7, 1e-3, 5], 90, [45, 90, 90, 45]),
    ([2.5, 1], 1, [1, 1]),
    ([1, 2], 97, [97, 97]),
]


def mixture(weights: list[float], lanes: int, streams: list[int], seed: int = 5) -> Mixture:
    return Mixture(weights, seed, num_lanes=lanes, num_streams=streams)


@pytest.mark.parametrize(("weights", "lanes", "streams"), CASES)
def test_the_draws_are_those_of_a_slow_second_writing(
    weights: list[float], lanes: int, streams: list[int]
) -> None:
    wanted = slow_draws(weights, 5, lanes, streams, 1500)
    mixed = mixture(weights, lanes, streams)
    assert list(islice(mixed.draws(0), 1500)) == wanted
    for start in numpy.random.default_rng(lanes).integers(0, 1400, 12).tolist():
        assert list(islice(mixed.draws(start), 100)) == wanted[start : start + 100], start


def test_the_seed_turns_the_assignment() -> None:
    first, second = (
        [draw.part for draw in islice(mixture([3, 1], 96, [96, 96], seed).draws(0), 96)]
        for seed in (1, 2)
    )
    assert first != second
    assert Counter(first) == Counter(second) == {0: 72, 1: 24}


@pytest.mark.parametrize("weights", [[3, 1], [1, 1, 1], [0.1, 0.7, 1e-3, 5], [1] * 32, [1e-6, 1e6]])
@pytest.mark.parametrize("lanes", [1, 12, 90, 96, 128, 192])
def test_every_set_has_its_share(weights: list[float], lanes: int) -> None:
    shares = numpy.asarray([float(share) for share in shares_of(weights)])
    mixed, total = mixture(weights, lanes, [lanes] * len(weights)), numpy.zeros(len(weights))
    for number in range(800):
        found = mixed.sets_in_round(number)
        counts = numpy.bincount(found, minlength=len(weights))
        assert abs(counts - lanes * shares).max() < 1 + 1e-9, "in every round"
        total += counts
        assert abs(total - (number + 1) * lanes * shares).max() < 4, "from the start"
        for first in range(0, lanes - 31, 32):
            in_batch = numpy.bincount(found[first : first + 32], minlength=len(weights))
            assert abs(in_batch - 32 * shares).max() < 3, "in batches of 32"


def test_shares_are_exact_after_a_thousand_million_images() -> None:
    number = 10**9 // 96
    taken = mixture([3, 1, 0.7], 96, [96, 24, 12])._taken_before(number)
    for given, share in zip(taken, shares_of([3, 1, 0.7]), strict=True):
        assert abs(sum(given) - number * 96 * share) < 5


@pytest.mark.parametrize(("weights", "lanes", "streams"), CASES)
def test_every_number_of_a_set_comes_once_and_nearly_in_order(
    weights: list[float], lanes: int, streams: list[int]
) -> None:
    numbers: list[list[int]] = [[] for _ in weights]
    for draw in islice(mixture(weights, lanes, streams).draws(0), 20_000):
        assert draw.number % streams[draw.part] == draw.stream
        numbers[draw.part].append(draw.number)
    for found, num_streams in zip(numbers, streams, strict=True):
        assert len(set(found)) == len(found)
        late = [number - place for place, number in enumerate(found)]
        assert max(map(abs, late)) <= 12 * num_streams, "streams drift apart by a few images"
