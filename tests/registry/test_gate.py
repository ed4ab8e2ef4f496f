"""The gate's decision, against a slow bootstrap of its own and evaluations made by hand."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.register_section import PromoteSection
from orchestrator.evaluation.feature_set import FeatureSet
from orchestrator.evaluation.measure import measure_kid
from orchestrator.evaluation.report import EvaluationReport
from orchestrator.model_evaluation.evaluate_model import Evaluation
from orchestrator.registry.gate import Difference, decide, difference_of

RULES = PromoteSection.model_validate({"alias": "champion", "better": {"kid": {"margin": 0.0}}})
ABOUT: dict[str, str | int | float] = {
    "data_digest": "abc",
    "num_images": 60,
    "seed": 0,
    "extractor": "drawn",
}


def features(seed: int, shift: float, count: int = 60) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + shift


def evaluation(seed: int, shift: float, **about: Any) -> Evaluation:
    """Features of images that are ``shift`` away from the reference."""
    real = FeatureSet("reference", features(99, 0.0), "drawn")
    drawn = FeatureSet("images", features(seed, shift), "drawn")
    report = EvaluationReport(tuple(measure_kid(real, drawn)))
    return Evaluation(report, drawn, real, {**ABOUT, **about})


def slow_kid(x: NDArray[Any], y: NDArray[Any], i: NDArray[Any], j: NDArray[Any]) -> float:
    """The KID of the drawn images, pair by pair, without pairs of one and the same image."""

    def mean(a: NDArray[Any], b: NDArray[Any], m: NDArray[Any], n: NDArray[Any], same: bool) -> Any:
        kernel = (a[m] @ b[n].T / a.shape[1] + 1) ** 3
        kept = m[:, None] != n[None, :] if same else np.ones_like(kernel, dtype=bool)
        return kernel[kept].mean()

    return float(mean(x, x, i, i, True) + mean(y, y, j, j, True) - 2 * mean(x, y, i, j, False))


def test_the_interval_of_the_difference_is_that_of_a_slow_bootstrap() -> None:
    x, other, y = features(1, 0.3), features(2, 0.5), features(3, 0.0, 80)
    value, interval = difference_of("kid", x, other, y)
    rng, (a, b, c) = np.random.default_rng(5), (t.double().numpy() for t in (x, other, y))
    drawn = []
    for _ in range(1_500):
        i, j = rng.integers(60, size=60), rng.integers(80, size=80)
        drawn.append(slow_kid(a, c, i, j) - slow_kid(b, c, i, j))
    every = slow_kid(a, c, np.arange(60), np.arange(80))
    assert value == pytest.approx(every - slow_kid(b, c, np.arange(60), np.arange(80)), rel=1e-9)
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.1 * width)
    assert interval.high == pytest.approx(high, abs=0.1 * width)


def test_a_better_one_passes_and_a_worse_or_equal_one_does_not() -> None:
    near, far = evaluation(1, 0.1), evaluation(2, 1.0)
    assert decide(RULES, near, far, 1).promoted
    for candidate, champion in ((far, near), (near, near)):
        decision = decide(RULES, candidate, champion, 1)
        assert not decision.promoted
        (difference,) = decision.differences
        assert decision.reasons == (f"not better: {difference}",)
        assert f"{difference.high:.3g}" in decision.reasons[0]


def test_the_margin_counts_from_the_end_of_the_interval() -> None:
    near, far = evaluation(1, 0.1), evaluation(2, 1.0)
    (difference,) = decide(RULES, near, far, 1).differences
    for margin, passes in ((-difference.high * 0.99, True), (-difference.high * 1.01, False)):
        rules = RULES.model_validate({**RULES.model_dump(), "better": {"kid": {"margin": margin}}})
        assert decide(rules, near, far, 1).promoted is passes


@pytest.mark.parametrize("place", ["candidate", "champion", "low", "high"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_better(place: str, value: float) -> None:
    good = Difference("kid", 0.1, 0.5, -0.4, -0.5, -0.3, 0.0)
    assert good.is_better
    changed = Difference(**{**asdict(good), place: value})
    assert not changed.is_better


@pytest.mark.parametrize(
    ("key", "value"),
    [("data_digest", "xyz"), ("num_images", 50), ("extractor", "other"), ("seed", 1)],
)
def test_other_data_numbers_or_extractors_are_refused_with_both_values(
    key: str, value: Any
) -> None:
    near, far = evaluation(1, 0.1), evaluation(2, 1.0)
    other = replace(far, about={**far.about, key: value})
    expected = f"{key} is {ABOUT[key]}, and the champion was judged with {value}"
    for decision in (
        decide(RULES, near, other, 1),
        decide(RULES, near, far, 1, {**ABOUT, key: value}),
    ):
        assert not decision.promoted
        assert decision.reasons == (expected,)


def test_without_a_champion_the_limits_decide() -> None:
    near = evaluation(1, 0.1)
    value = near.report.measurements[0].value
    for bound, passes in ((value + 0.01, True), (value - 0.01, False)):
        rules = RULES.model_validate({**RULES.model_dump(), "at_most": {"kid": bound}})
        decision = decide(rules, near, None)
        assert decision.promoted is passes
        assert passes or decision.reasons == (
            f"kid.drawn is {value:.4g}, and at most {bound:g} is allowed",
        )
