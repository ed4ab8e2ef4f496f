"""Which of several training sets each image of a run comes from, for any number of workers.

Position n of the global order belongs to lane n % L of round n // L, with L ``num_lanes``
(``data.shuffle_streams``). A round lays L points on a circle, one per lane and 1 / L apart, and
each set has an arc of the circle as long as its share of the weights: a position takes its image
from the set whose arc its point is on. So of the L images of each round, every set has its share to
less than one image. From round to round, all points turn by one step.

Both the distance of neighbouring lanes and the step are close to the golden ratio, whose multiples
are spread more evenly over a circle than any others, so that batches within a round and the images
of one lane are mixed as well. L steps are the golden ratio itself, so that the differences of the
rounds cancel each other.

A set has shuffle streams of its own, a divisor of L. The i-th image that the lanes l with
l % num_streams == s take from it is number i num_streams + s of the set's order (sampler.py). So
every number comes once, and if the number of workers divides num_streams, each worker reads only
windows of its own, as with one set. The price is that numbers come only nearly in their order: the
streams of a set drift apart by a few images.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, count
from typing import NamedTuple

import numpy

from orchestrator.data.format.sample_table import Integers
from orchestrator.seeding import seed_of

CIRCLE = 1 << 64
"""Points on the circle are integers below this."""
GOLDEN = 0x9E3779B97F4A7C15
"""The golden ratio's fraction 0.618..., times CIRCLE."""
MAX_CANDIDATES = 64


class Draw(NamedTuple):
    """The image of one position."""

    position: int
    """In the global order."""
    part: int
    """Number of its set."""
    stream: int
    """Shuffle stream of the set, without the turn of each pass; see ``number``."""
    number: int
    """In the set's own order, counted over all passes; ``number % num_streams == stream``."""


class Mixture:
    """Assigns the positions of the global order to sets. Safe to share between threads."""

    def __init__(
        self, weights: Sequence[float], seed: int, *, num_lanes: int, num_streams: Sequence[int]
    ) -> None:
        """Mix sets with positive ``weights`` and ``num_streams``, each a divisor of ``num_lanes``.

        ``seed`` turns the first round.
        """
        assert all(num_lanes % streams == 0 for streams in num_streams)
        self.num_lanes, self._num_streams = num_lanes, tuple(num_streams)
        self.shares = shares_of(weights)
        self._arc_ends = [0, *(int(end * CIRCLE) for end in accumulate(self.shares))]
        self._inner_ends = numpy.asarray(self._arc_ends[1:-1], numpy.uint64)
        near = num_lanes * GOLDEN // CIRCLE
        coprime = (k for k in _around(near) if math.gcd(k, num_lanes) == 1)
        distance = _most_irrational(coprime, lambda k: Fraction(k % num_lanes, num_lanes))
        steps = (k * CIRCLE + GOLDEN for k in _around(near) if 0 <= k < num_lanes)
        step = _most_irrational(steps, lambda k: Fraction(k, num_lanes * CIRCLE))
        self._step = step // num_lanes
        first = seed_of("mixture", seed) % CIRCLE
        self._starts = [
            (first + lane * distance % num_lanes * CIRCLE // num_lanes) % CIRCLE
            for lane in range(num_lanes)
        ]
        """Point of each lane in round 0."""
        self._lane_points = numpy.asarray(self._starts, numpy.uint64)

    def sets_in_round(self, number: int) -> Integers:
        """Return the set of each lane in a round: int64 (num_lanes,)."""
        turned = self._lane_points + numpy.uint64(number * self._step % CIRCLE)
        return numpy.searchsorted(self._inner_ends, turned, side="right")

    def draws(self, start: int) -> Iterator[Draw]:
        """Yield what each position takes, from ``start`` on, endlessly."""
        first_round = start // self.num_lanes
        taken = self._taken_before(first_round)
        for number in count(first_round):
            base = number * self.num_lanes
            for lane, part in enumerate(self.sets_in_round(number).tolist()):
                streams = self._num_streams[part]
                stream = lane % streams
                within = taken[part][stream]
                taken[part][stream] = within + 1
                if base + lane >= start:
                    yield Draw(base + lane, part, stream, within * streams + stream)

    def _taken_before(self, number: int) -> list[list[int]]:
        """Return how many images each stream of each set has given before a round."""
        taken = [[0] * streams for streams in self._num_streams]
        for lane, point in enumerate(self._starts):
            below = [self._count_below(point, end, number) for end in self._arc_ends]
            for part, streams in enumerate(self._num_streams):
                taken[part][lane % streams] += below[part + 1] - below[part]
        return taken

    def _count_below(self, point: int, end: int, num_rounds: int) -> int:
        """Count the first rounds in which the lane that starts at ``point`` is before ``end``."""
        turns = _sum_of_floors(num_rounds, CIRCLE, self._step, point)
        beyond = _sum_of_floors(num_rounds, CIRCLE, self._step, point + CIRCLE - end)
        return num_rounds + turns - beyond


def shares_of(weights: Sequence[float]) -> list[Fraction]:
    """Return the fraction of the images that comes from each set, of the weights as written."""
    parts = [Fraction(repr(weight)) for weight in weights]
    return [part / sum(parts) for part in parts]


def _around(number: int) -> Iterator[int]:
    """Yield the integers around ``number``, the nearest first."""
    for distance in range(MAX_CANDIDATES):
        yield from {number + distance, number - distance}


def _most_irrational(candidates: Iterator[int], ratio: Callable[[int], Fraction]) -> int:
    """Return the candidate whose ratio has the smallest partial quotients."""
    return min(candidates, key=lambda k: (_largest_quotient(ratio(k)), k))


def _largest_quotient(value: Fraction) -> int:
    """Return the largest quotient of the continued fraction of ``value``, up to 9 digits."""
    largest, above, below = 0, value.numerator, value.denominator
    size = 1
    while above and size < 10**9:
        quotient, rest = divmod(below, above)
        largest, size = max(largest, quotient), size * (quotient + 1)
        below, above = above, rest
    return largest


def _sum_of_floors(count: int, modulus: int, step: int, start: int) -> int:
    """Return the sum of (start + i step) // modulus over i < count, as Euclid's algorithm."""
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (step // modulus) + count * (start // modulus)
        count, start = divmod(step % modulus * count + start % modulus, modulus)
        modulus, step = step % modulus, modulus
    return total
