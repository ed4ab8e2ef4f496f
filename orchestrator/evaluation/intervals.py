"""Intervals of metrics: how far a value would move if other images had been drawn.

Two ways, because metrics of two kinds exist:

- bootstrap: images are drawn with replacement, which gives each a weight. It is right for means
  over images, and for the KID if pairs of one image with itself are left out (kid.py).
- halves: the metric of random halves of the sets, drawn without replacement. A metric of nearest
  neighbours or of a covariance cannot be bootstrapped: an image that is drawn twice is its own
  nearest neighbour, and takes a direction from the covariance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import NormalDist

import torch
from torch import Generator, Tensor

RESAMPLES = 1000
"""Bootstrap resamples: enough for the ends of an interval at 95 %."""
HALVES = 32
"""Random halves: they give the standard error to within 13 %."""
LEVEL = 0.95
"""Probability with which an interval should contain the value of infinitely many drawings."""


@dataclass(frozen=True)
class Interval:
    """The ends of an interval around a value."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def bootstrap_weights(count: int, resamples: int = RESAMPLES, *, seed: int = 0) -> Tensor:
    """Draw ``count`` of ``count`` images with replacement: float64 (resamples, count) on the CPU.

    A weight is the number of times that the image was drawn.
    """
    generator = Generator().manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    weights = torch.zeros(resamples, count, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def percentile_interval(values: Tensor, level: float = LEVEL) -> Interval:
    """Return the interval that has ``level`` of the resampled ``values`` (resamples,)."""
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values.double().cpu().quantile(tail).tolist()
    return Interval(low, high)


def mean_interval(values: Tensor, *, seed: int = 0) -> Interval:
    """Return the bootstrap interval of the mean of independent ``values`` (N,)."""
    weights = bootstrap_weights(len(values), seed=seed)
    return percentile_interval(weights @ values.double().cpu() / len(values))


def halves_intervals(
    metrics: Callable[[Sequence[Tensor]], Sequence[float]],
    sizes: Sequence[int],
    *,
    resamples: int = HALVES,
    seed: int = 0,
) -> list[Interval]:
    """Return the intervals of metrics of several sets of images from random halves of all of them.

    The metric's standard deviation over halves without replacement is its standard error for the
    whole sets: half the images double the variance, and that they come from the given ones halves
    it again (the delete-d jackknife with d = N / 2: Shao and Wu 1989, equation 2.5,
    https://doi.org/10.1214/aos/1176347263). The interval is centred on the value of the whole
    sets, so it is one of the metric at these numbers of images, with the bias that they bring.

    Args:
        metrics: values for the images with the given indices, int64, one tensor for each set.
        sizes: number of images of each set.
        resamples: number of halves.
        seed: of the draws.
    """
    generator = Generator().manual_seed(seed)
    whole = metrics([torch.arange(size) for size in sizes])
    found = torch.tensor(
        [
            metrics([torch.randperm(size, generator=generator)[: size // 2] for size in sizes])
            for _ in range(resamples)
        ],
        dtype=torch.float64,
    )
    reaches = NormalDist().inv_cdf((1 + LEVEL) / 2) * found.std(0)
    pairs = zip(whole, reaches.tolist(), strict=True)
    return [Interval(value - reach, value + reach) for value, reach in pairs]


def difference_interval(
    metric: Callable[[Tensor, Tensor], float],
    candidates: tuple[Tensor, Tensor],
    reference: Tensor,
    *,
    paired: bool = False,
    resamples: int = HALVES,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Return metric(first, reference) - metric(second, reference) and its interval from halves.

    For metrics of two sets of features such as the Frechet distance; for the KID see
    ``kid_difference``, and for means over paired images ``mean_interval`` of the differences. Both
    candidates meet the same half of the reference, so what it adds to both cancels. ``paired``:
    image i of both candidates comes from the same input or seed.
    """
    first, second = candidates

    def difference(indices: Sequence[Tensor]) -> list[float]:
        i, j = indices[0], indices[0] if paired else indices[2]
        half = reference[indices[1]]
        return [metric(first[i], half) - metric(second[j], half)]

    assert not paired or len(first) == len(second), "pairs need equal numbers of images"
    sizes = [len(first), len(reference), *([] if paired else [len(second)])]
    (interval,) = halves_intervals(difference, sizes, resamples=resamples, seed=seed)
    return metric(first, reference) - metric(second, reference), interval


@dataclass(frozen=True)
class Floor:
    """A metric of real images against other real images of the same set."""

    mean: float
    low: float
    high: float
    n: int
    """Images on each side: half of the set at most, so fewer than what it is compared with."""


def real_floors(
    metrics: Callable[[Tensor, Tensor], Sequence[float]],
    count: int,
    n: int,
    *,
    splits: int = 5,
    seed: int = 0,
) -> list[Floor]:
    """Measure what real images score against real ones: mean, least and most over random splits.

    A generator cannot be told from the data below (for precision and the like above) this. Each
    split takes two disjoint sets of ``n`` images, or of half of the ``count`` that there are.

    Args:
        metrics: values for two sets of images with the given indices.
        count: number of real images.
        n: number of images to compare with as many others.
        splits: number of random splits.
        seed: of the draws.
    """
    generator = Generator().manual_seed(seed)
    n = min(n, count // 2)
    found = []
    for _ in range(splits):
        order = torch.randperm(count, generator=generator)
        found.append(metrics(order[:n], order[n : 2 * n]))
    columns = zip(*found, strict=True)
    return [Floor(fsum(values) / splits, min(values), max(values), n) for values in columns]
