"""Intervals: how often they cover the truth, and that they repeat."""

from collections.abc import Callable, Sequence
from dataclasses import astuple

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from orchestrator.evaluation.frechet import frechet_distance
from orchestrator.evaluation.intervals import (
    Interval,
    bootstrap_weights,
    difference_interval,
    halves_intervals,
    mean_interval,
    percentile_interval,
    real_floors,
)
from orchestrator.evaluation.neighbours import Distances, neighbourhoods
from support.drawn_features import correlated


def test_weights_are_draws_with_replacement() -> None:
    weights = bootstrap_weights(50, 2000)
    assert weights.sum(1).eq(50).all()
    assert float(weights.mean()) == 1
    assert float(weights.var()) == pytest.approx(1 - 1 / 50, rel=0.03)
    assert torch.equal(weights, bootstrap_weights(50, 2000))
    assert not torch.equal(weights, bootstrap_weights(50, 2000, seed=1))


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = torch.randn(80, generator=torch.Generator().manual_seed(1)).exp()
    found = mean_interval(values)
    by_scipy = scipy.stats.bootstrap((values.double().numpy(),), np.mean, method="percentile")
    low, high = (float(end) for end in by_scipy.confidence_interval)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.05 * (high - low))


def test_a_percentile_interval_has_95_percent() -> None:
    found = percentile_interval(torch.arange(1001.0))
    assert [found.low, found.high] == pytest.approx([25, 975])
    assert 25 in Interval(25, 975)
    assert 24.9 not in Interval(25, 975)


Metric = Callable[[Tensor, Tensor], Sequence[float]]


def frechet(x: Tensor, y: Tensor) -> list[float]:
    return [frechet_distance(x, y)]


def prdc(x: Tensor, y: Tensor) -> Sequence[float]:
    return astuple(neighbourhoods(Distances.of(y, x)))


def of_halves(metric: Metric, x: Tensor, y: Tensor) -> list[Interval]:
    return halves_intervals(lambda of: metric(x[of[0]], y[of[1]]), (len(x), len(y)))


@pytest.mark.slow
@pytest.mark.parametrize("metric", [frechet, prdc])
@pytest.mark.parametrize("size", [16, 160], ids=["more images", "more features"])
def test_halves_give_the_spread_over_independent_drawings(metric: Metric, size: int) -> None:
    """And so intervals cover the mean over drawings about 95 times in 100."""
    drawn = [
        (correlated(100, size, 2 * s, shift=0.3, scale=0.8), correlated(100, size, 2 * s + 1))
        for s in range(60)
    ]
    values = torch.tensor([metric(x, y) for x, y in drawn])
    intervals = [of_halves(metric, x, y) for x, y in drawn]
    for column, spread in enumerate(values.std(0).tolist()):
        found = [each[column] for each in intervals]
        width = sum((each.high - each.low) / (2 * 1.96) for each in found) / len(found)
        assert 0.75 * spread < width < 1.6 * spread
        covered = sum(float(values[:, column].mean()) in each for each in found)
        assert covered >= 0.88 * len(found)


def test_the_difference_of_two_candidates_is_seen_on_one_reference() -> None:
    reference = correlated(100, 32, 7)
    a, b, worse = (correlated(200, 32, s, shift=t) for s, t in ((1, 0.2), (2, 0.2), (3, 0.7)))
    value, interval = difference_interval(frechet_distance, (a, b), reference)
    assert value == frechet_distance(a, reference) - frechet_distance(b, reference)
    assert 0 in interval
    assert difference_interval(frechet_distance, (a, worse), reference)[1].high < 0
    assert difference_interval(frechet_distance, (worse, a), reference)[1].low > 0


def test_pairs_of_candidates_are_drawn_together() -> None:
    reference, a = correlated(100, 32, 7), correlated(100, 32, 1, shift=0.2)
    near = a + 0.001
    pairs = difference_interval(frechet_distance, (a, near), reference, paired=True)[1]
    apart = difference_interval(frechet_distance, (a, near), reference)[1]
    assert pairs.high - pairs.low < 0.1 * (apart.high - apart.low)


def test_floors_compare_disjoint_images() -> None:
    seen: list[tuple[set[int], set[int]]] = []

    def metric(i: Tensor, j: Tensor) -> list[float]:
        seen.append((set(i.tolist()), set(j.tolist())))
        return [float(len(seen)), 0.0]

    first, second = real_floors(metric, 101, 30, splits=4)
    assert all(not i & j and len(i) == len(j) == 30 for i, j in seen)
    assert (first.mean, first.low, first.high, first.n) == (2.5, 1, 4, 30)
    assert second.high == 0
    assert real_floors(metric, 101, 80)[0].n == 50


def test_the_reference_of_a_difference_is_drawn_too() -> None:
    """Candidates without any variance: (1 - m)^2 - (-1 - m)^2 = -4 m, m being the mean of y."""

    def metric(x: Tensor, y: Tensor) -> float:
        return float((x.mean() - y.mean()) ** 2)

    reference = torch.randn(400, 1, generator=torch.Generator().manual_seed(1)).double()
    ones = torch.ones(50, 1, dtype=torch.float64)
    value, interval = difference_interval(metric, (ones, -ones), reference, resamples=400)
    assert value == pytest.approx(-4 * float(reference.mean()))
    expected = 2 * 1.96 * 4 * float(reference.std()) / 400**0.5
    assert interval.high - interval.low == pytest.approx(expected, rel=0.15)
