"""Precision, recall, density and coverage against loops and the package prdc."""

from dataclasses import asdict, astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.evaluation.neighbours import (
    Distances,
    Neighbourhoods,
    neighbourhoods,
    pairwise_distances,
)
from support.drawn_features import correlated


def measured(real: Tensor, generated: Tensor, k: int = 5) -> Neighbourhoods:
    return neighbourhoods(Distances.of(real, generated), k)


def by_loops(real: np.ndarray, generated: np.ndarray, k: int) -> list[float]:
    def radius(image: int, images: np.ndarray) -> float:
        return float(sorted(np.linalg.norm(images[image] - each) for each in images)[k])

    real_radii = [radius(i, real) for i in range(len(real))]
    generated_radii = [radius(j, generated) for j in range(len(generated))]
    near = [[float(np.linalg.norm(r - g)) for g in generated] for r in real]
    rows, columns = range(len(real)), range(len(generated))
    hits = [[near[i][j] < real_radii[i] for j in columns] for i in rows]
    return [
        sum(any(hits[i][j] for i in rows) for j in columns) / len(generated),
        sum(any(near[i][j] < generated_radii[j] for j in columns) for i in rows) / len(real),
        sum(sum(row) for row in hits) / (k * len(generated)),
        sum(any(row) for row in hits) / len(real),
    ]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_equal_loops_over_all_images(k: int) -> None:
    real, generated = correlated(30, 6, 1), correlated(22, 6, 2, shift=0.3, scale=0.7)
    expected = by_loops(real.double().numpy(), generated.double().numpy(), k)
    assert list(astuple(measured(real, generated, k))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_they_equal_prdc_in_an_asymmetric_case(k: int) -> None:
    from prdc import compute_prdc

    real, generated = correlated(150, 20, 1), correlated(90, 20, 2, shift=0.2, scale=0.6)
    expected = compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=k)
    found = asdict(measured(real, generated, k))
    assert found == pytest.approx(expected, abs=1e-9)
    assert found["precision"] > found["recall"] + 0.1  # exchanged, they would not agree


def test_precision_and_recall_equal_torch_fidelity() -> None:
    """It counts the edge of a neighbourhood as inside, which no drawn feature lies on."""
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, generated = correlated(150, 20, 1), correlated(90, 20, 2, shift=0.2, scale=0.6)
    expected = calculate_precision_recall_full(generated.double(), real.double(), 3)
    found = measured(real, generated, 3)
    assert (found.precision, found.recall) == pytest.approx(expected, abs=1e-6)


def test_precision_is_blind_to_a_lack_of_variety_that_recall_and_coverage_see() -> None:
    real = correlated(300, 16, 1)
    narrow = real.mean(0) + 0.3 * (correlated(300, 16, 2) - real.mean(0))
    found, usual = measured(real, narrow), measured(real, correlated(300, 16, 3))
    assert found.precision > usual.precision
    assert found.recall < 0.5 * usual.recall
    assert found.coverage < 0.7 * usual.coverage


def test_equal_images_have_a_distance_of_0_and_are_inside_no_neighbourhood_of_radius_0() -> None:
    x = 100 * correlated(40, 512, 1)
    assert pairwise_distances(x, x).diagonal().eq(0).all()
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(pairwise_distances(x, x), exact, rtol=1e-9, atol=0)
    copies = x[:1].expand(20, -1)
    assert astuple(measured(copies, copies)) == (0, 0, 0, 0)


def test_distances_of_a_subset_are_those_of_its_images() -> None:
    real, generated = correlated(30, 6, 1), correlated(25, 6, 2)
    i, j = torch.tensor([4, 1, 7, 20, 3, 9, 11]), torch.tensor([0, 24, 2, 6, 8, 10, 12, 5])
    part = Distances.of(real, generated).subset(i, j)
    assert neighbourhoods(part, 3) == measured(real[i], generated[j], 3)
