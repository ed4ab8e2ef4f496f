"""The Frechet distance against a closed form, a square root of matrices and torch-fidelity."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Generator, Tensor

from orchestrator.evaluation.frechet import frechet_distance
from support.drawn_features import correlated


def with_moments(mean: Tensor, deviations: Tensor, count: int, seed: int) -> Tensor:
    """A sample with exactly this mean and exactly a diagonal covariance."""
    drawn = torch.randn(count, len(mean), generator=Generator().manual_seed(seed)).double()
    directions: Tensor = torch.linalg.qr(drawn - drawn.mean(0)).Q
    return directions * math.sqrt(count - 1) * deviations + mean


def test_two_gaussians_have_the_distance_of_the_closed_form() -> None:
    """With diagonal covariances it is |m1 - m2|^2 + |s1 - s2|^2, s being deviations."""
    means = torch.tensor([[1.0, -2, 0.5], [0.25, 3, 0.5]], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 0.2, 3], [2, 0.2, 0.01]], dtype=torch.float64)
    x, y = (with_moments(m, s, n, n) for m, s, n in zip(means, deviations, (40, 70), strict=True))
    expected = 0.75**2 + 25 + 1 + 2.99**2
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def by_square_root(x: Tensor, y: Tensor) -> float:
    """The definition: a matrix square root of the product of the covariances, as Heusel et al."""
    a, b = (np.cov(each.double().numpy(), rowvar=False) for each in (x, y))
    root = scipy.linalg.sqrtm(a @ b).real
    difference = (x.double().mean(0) - y.double().mean(0)).square().sum()
    return float(difference + np.trace(a) + np.trace(b) - 2 * np.trace(root))


@pytest.mark.parametrize(("n", "m"), [(50, 60), (50, 200), (300, 200)])
def test_it_equals_the_definition_whichever_set_has_more_images_than_features(
    n: int, m: int
) -> None:
    x, y = correlated(n, 100, 1), correlated(m, 100, 2, shift=0.2, scale=1.3)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)
    # Where covariances are singular, the root of the definition is only that exact.
    exactness = 1e-9 if min(n, m) > 100 else 1e-4
    assert frechet_distance(x, y) == pytest.approx(by_square_root(x, y), rel=exactness)


@pytest.mark.parametrize(("n", "m"), [(300, 260), (150, 260), (80, 90)])
def test_it_equals_torch_fidelity(n: int, m: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    generated, real = correlated(n, 128, 1, shift=0.2).double(), correlated(m, 128, 2).double()
    statistics = [fid_features_to_statistics(each) for each in (generated, real)]
    expected = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # With singular covariances, eigenvalues that are 0 come out as 1e-16, whose roots add up.
    assert frechet_distance(generated, real) == pytest.approx(expected, rel=1e-6)


def test_it_grows_as_the_sets_become_smaller() -> None:
    """The bias that makes a distance without its number of images unreadable."""
    found = [frechet_distance(correlated(n, 64, 1), correlated(n, 64, 2)) for n in (1600, 400, 100)]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]
