"""Detection of a collapse from metrics."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Collapsed, Diverged
from orchestrator.models.base import Sign, model_module, model_names
from orchestrator.models.parts.adversarial import accuracies
from orchestrator.training.collapse import MIN_POINTS, CollapseDetector, default_grace_images


def test_a_collapse_is_a_kind_of_divergence_with_the_same_exit_code() -> None:
    assert issubclass(Collapsed, Diverged)
    assert Collapsed.exit_code == 6


WINS = Sign("wins", ("d/real", "d/fake"), 0.99, "the generator has lost")


def points(detector: CollapseDetector, accuracies: list[float], step: int = 10) -> list[list[str]]:
    return [
        detector.update({"d/real": 1.0, "d/fake": value}, step * n)
        for n, value in enumerate(accuracies)
    ]


def test_a_sign_that_lasts_is_reported_once_with_its_meaning() -> None:
    detector = CollapseDetector([WINS], min_images=100, grace_images=10**6)
    reported = points(detector, [1.0] * 30)
    assert [n for n, lines in enumerate(reported) if lines] == [10]
    assert reported[10] == [
        "d/real and d/fake at 0.99 or above for 100 images: the generator has lost"
    ]  # fmt: skip
    assert detector.is_collapsed


def test_an_intermittent_sign_does_not_count() -> None:
    detector = CollapseDetector([WINS], min_images=100, grace_images=10**6)
    assert not any(points(detector, [0.5 if n % 9 == 8 else 1.0 for n in range(100)]))
    assert not detector.is_collapsed


def test_a_few_points_are_not_enough_however_far_apart() -> None:
    reported = points(
        CollapseDetector([WINS], min_images=100, grace_images=10**6), [1.0] * 20, step=1000
    )
    assert [n for n, lines in enumerate(reported) if lines] == [MIN_POINTS - 1]


def test_a_point_without_the_metrics_changes_nothing() -> None:
    detector = CollapseDetector([WINS], min_images=100, grace_images=10**6)
    points(detector, [1.0] * 20)
    assert detector.update({"d/real": 0.1}, 500) == []
    assert detector.is_collapsed


def test_low_diversity_within_the_grace_period_is_a_sign_only_after_it_was_higher() -> None:
    """Many generators begin with images that are all alike."""
    detector = CollapseDetector([], min_images=100, grace_images=10**6)
    reported = [
        detector.update({"samples/diversity": d}, n) for n, d in enumerate([0.01, 0.02, 0.8, 0.2])
    ]
    assert not any(reported)
    (line,) = detector.update({"samples/diversity": 0.05}, 5)
    assert "fell to 0.05" in line
    assert detector.is_collapsed
    assert detector.update({"samples/diversity": 0.5}, 6) == []
    assert not detector.is_collapsed


@given(
    diversities=st.lists(st.floats(0, 0.3), min_size=1, max_size=30),
    grace=st.integers(0, 400),
)
def test_low_diversity_counts_after_a_high_one_or_after_the_grace_period(
    diversities: list[float], grace: int
) -> None:
    detector = CollapseDetector([], min_images=100, grace_images=grace)
    for n, diversity in enumerate(diversities):
        reported = detector.update({"samples/diversity": diversity}, 10 * n)
        was_diverse = max(diversities[: n + 1]) >= 0.1
        assert detector.is_collapsed == detector.is_alike
        assert detector.is_alike == (diversity < 0.1 and (was_diverse or 10 * n >= grace))
        assert bool(reported) <= detector.is_alike


@pytest.mark.parametrize(
    ("epoch", "total", "expected"),
    [(1000, 50_000, 5000), (1000, 5000, 1000), (60_000, 8000, 4000), (12, 24, 12), (9, 4, 2)],
)
def test_the_grace_period_is_an_epoch_within_a_tenth_and_half_of_the_training(
    epoch: int, total: int, expected: int
) -> None:
    assert default_grace_images(epoch, total) == expected


@given(
    values=st.lists(st.tuples(st.sampled_from([0.5, 1.0]), st.floats(0, 1)), max_size=50),
    cut=st.integers(0, 50),
)
def test_a_restored_detector_reports_the_same_as_the_original(
    values: list[tuple[float, float]], cut: int
) -> None:
    def update(
        detector: CollapseDetector, first: int, part: list[tuple[float, float]]
    ) -> list[list[str]]:
        return [
            detector.update({"d/real": a, "d/fake": a, "samples/diversity": d}, 10 * n)
            for n, (a, d) in enumerate(part, first)
        ]

    whole, first, second = (
        CollapseDetector([WINS], min_images=100, grace_images=10**6) for _ in range(3)
    )
    expected = update(whole, 0, values)
    reported = update(first, 0, values[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert reported + update(second, len(values[:cut]), values[cut:]) == expected


def test_accuracies_are_the_fractions_of_correct_answers() -> None:
    real, fake = torch.tensor([[2.0], [0.5], [-1.0], [3.0]]), torch.tensor([[-2.0], [0.0], [0.7]])
    found = {name: value.item() for name, value in accuracies(real, fake).items()}
    assert found == pytest.approx({"accuracy_real": 3 / 4, "accuracy_fake": 2 / 3})
    found = {name: value.item() for name, value in accuracies(real, fake, 0.6).items()}
    assert found == pytest.approx({"accuracy_real": 2 / 4, "accuracy_fake": 2 / 3})


@pytest.mark.parametrize("name", model_names())
def test_the_signs_of_a_model_use_metrics_that_it_documents(name: str) -> None:
    module = model_module(name)
    signs = module.Model.signs_of_collapse
    assert [m for sign in signs for m in sign.metrics if m not in module.METRICS] == []
