"""What the guard decides, on numbers alone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.job import GuardSection
from orchestrator.config.load import load_job
from orchestrator.errors import Collapsed, Diverged
from orchestrator.models.base import Sign, model_module, model_names
from orchestrator.models.parts.adversarial import accuracies
from orchestrator.training.collapse import MIN_POINTS, CollapseDetector
from orchestrator.training.divergence import NORM_WINDOW, DivergenceGuard

NORM = st.one_of(
    st.floats(1e-3, 1e3), st.sampled_from([math.inf, -math.inf, math.nan]), st.just(1e9)
)


def actions(guard: DivergenceGuard, norms: list[float], phase: str = "a") -> list[str]:
    return [guard.decide(phase, norm).action for norm in norms]


def roll_back(guard: DivergenceGuard, saved: Mapping[str, Any] | None = None) -> None:
    """Load a checkpoint, or the start of a run, as a rollback does."""
    before = guard.state_dict()
    guard.load_state_dict(saved or {})
    guard.rolled_back(before)


def test_single_updates_that_are_not_finite_are_left_out_and_the_next_ones_made() -> None:
    guard = DivergenceGuard(GuardSection(max_consecutive_skips=1))
    assert actions(guard, [1.0, math.nan, 1.0, math.inf, 1.0]) == [
        "continue", "skip", "continue", "skip", "continue",
    ]  # fmt: skip
    assert guard.metrics() == {"guard/skipped_updates": 2.0, "guard/rollbacks": 0.0}


def test_one_more_in_a_row_than_may_be_left_out_goes_back_and_one_more_rollback_ends_it() -> None:
    guard = DivergenceGuard(
        GuardSection(max_consecutive_skips=2, max_rollbacks=1, learning_rate_factor=0.1)
    )
    assert actions(guard, [math.nan] * 3) == ["skip", "skip", "rollback"]
    roll_back(guard)
    assert guard.learning_rate_factor == 0.1
    assert actions(guard, [1.0, math.nan, math.nan]) == ["continue", "skip", "skip"]
    decision = guard.decide("a", math.nan)
    assert decision.action == "stop"
    assert decision.reason == "the gradient of a is not finite (its norm is nan), 3 times in a row"


def test_a_checkpoint_from_between_two_skips_gives_all_of_them_anew() -> None:
    guard = DivergenceGuard(GuardSection(max_consecutive_skips=2))
    assert actions(guard, [math.nan, math.nan]) == ["skip", "skip"]
    saved = guard.state_dict()
    assert actions(guard, [math.nan]) == ["rollback"]
    roll_back(guard, saved)
    assert actions(guard, [math.nan, math.nan, 1.0]) == ["skip", "skip", "continue"]
    assert guard.metrics() == {"guard/skipped_updates": 5.0, "guard/rollbacks": 1.0}


def test_each_phase_is_counted_for_itself() -> None:
    """One that runs every fifth step is not saved by the others' sound gradients."""
    guard = DivergenceGuard(GuardSection(max_consecutive_skips=1))
    assert actions(guard, [math.nan], "generator") == ["skip"]
    assert actions(guard, [1.0] * 5, "discriminator") == ["continue"] * 5
    assert guard.last_update_skipped
    assert actions(guard, [math.nan], "generator") == ["rollback"]


def test_without_skips_and_rollbacks_the_first_one_ends_it() -> None:
    assert actions(
        DivergenceGuard(GuardSection(max_consecutive_skips=0, max_rollbacks=0)), [math.nan]
    ) == ["stop"]


def test_a_spike_is_left_out_only_where_it_is_asked_for_and_after_enough_norms() -> None:
    norms = [1.0] * NORM_WINDOW + [9.0, 11.0, 1.0]
    assert actions(DivergenceGuard(GuardSection()), norms) == ["continue"] * len(norms)
    guard = DivergenceGuard(GuardSection(max_grad_norm_ratio=10))
    assert actions(guard, norms) == ["continue"] * (NORM_WINDOW + 1) + ["skip", "continue"]
    assert actions(DivergenceGuard(GuardSection(max_grad_norm_ratio=10)), [1.0, 1e9]) == [
        "continue",
        "continue",
    ]


@given(
    norms=st.lists(st.tuples(st.sampled_from("ab"), NORM), max_size=40),
    cut=st.integers(0, 40),
    spike=st.sampled_from([None, 2.0]),
)
def test_a_guard_that_was_written_down_and_read_goes_on_as_the_same(
    norms: list[tuple[str, float]], cut: int, spike: float | None
) -> None:
    settings = GuardSection(max_grad_norm_ratio=spike, max_consecutive_skips=2)
    whole = DivergenceGuard(settings)
    expected = [whole.decide(*one) for one in norms]
    first, second = DivergenceGuard(settings), DivergenceGuard(settings)
    said = [first.decide(*one) for one in norms[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert said + [second.decide(*one) for one in norms[cut:]] == expected
    assert second.state_dict() == whole.state_dict()


@given(norms=st.lists(NORM, max_size=60), skips=st.integers(0, 4), rollbacks=st.integers(0, 3))
def test_only_finite_norms_go_and_it_always_ends(
    norms: list[float], skips: int, rollbacks: int
) -> None:
    guard, in_a_row, backs = (
        DivergenceGuard(GuardSection(max_consecutive_skips=skips, max_rollbacks=rollbacks)),
        0,
        0,
    )
    for norm in norms:
        action = guard.decide("a", norm).action
        if math.isfinite(norm):
            in_a_row = 0
            assert action == "continue"
            continue
        in_a_row += 1
        if in_a_row <= skips:
            assert action == "skip"
        elif backs < rollbacks:
            assert action == "rollback"
            roll_back(guard)
            in_a_row, backs = 0, backs + 1
        else:
            assert action == "stop"
            break
    assert guard.rollbacks == backs <= rollbacks


def test_a_collapse_is_a_kind_of_divergence_with_the_same_exit_code() -> None:
    assert issubclass(Collapsed, Diverged)
    assert Collapsed.exit_code == 6


WINS = Sign("wins", ("d/real", "d/fake"), 0.99, "the generator has lost")


def points(detector: CollapseDetector, accuracies: list[float], step: int = 10) -> list[list[str]]:
    return [
        detector.update({"d/real": 1.0, "d/fake": value}, step * n)
        for n, value in enumerate(accuracies)
    ]


def test_a_sign_that_lasts_is_told_once_with_what_it_means() -> None:
    detector = CollapseDetector([WINS], min_images=100)
    told = points(detector, [1.0] * 30)
    assert [n for n, lines in enumerate(told) if lines] == [10]
    assert told[10] == [
        "d/real and d/fake at 0.99 or above for 100 images: the generator has lost"
    ]  # fmt: skip
    assert detector.is_collapsed


def test_a_sign_that_is_gone_once_in_a_while_is_none() -> None:
    detector = CollapseDetector([WINS], min_images=100)
    assert not any(points(detector, [0.5 if n % 9 == 8 else 1.0 for n in range(100)]))
    assert not detector.is_collapsed


def test_a_few_points_are_not_enough_however_far_apart() -> None:
    told = points(CollapseDetector([WINS], min_images=100), [1.0] * 20, step=1000)
    assert [n for n, lines in enumerate(told) if lines] == [MIN_POINTS - 1]


def test_a_point_without_the_metrics_changes_nothing() -> None:
    detector = CollapseDetector([WINS], min_images=100)
    points(detector, [1.0] * 20)
    assert detector.update({"d/real": 0.1}, 500) == []
    assert detector.is_collapsed


def test_diversity_is_a_sign_only_when_it_falls() -> None:
    """Many generators begin with images that are all alike."""
    detector = CollapseDetector([], min_images=100)
    told = [
        detector.update({"samples/diversity": d}, n) for n, d in enumerate([0.01, 0.02, 0.8, 0.2])
    ]
    assert not any(told)
    (line,) = detector.update({"samples/diversity": 0.05}, 5)
    assert "fell to 0.05" in line
    assert detector.is_collapsed
    assert detector.update({"samples/diversity": 0.5}, 6) == []
    assert not detector.is_collapsed


@given(
    values=st.lists(st.tuples(st.sampled_from([0.5, 1.0]), st.floats(0, 1)), max_size=50),
    cut=st.integers(0, 50),
)
def test_a_watch_that_was_written_down_and_read_goes_on_as_the_same(
    values: list[tuple[float, float]], cut: int
) -> None:
    def update(
        detector: CollapseDetector, first: int, part: list[tuple[float, float]]
    ) -> list[list[str]]:
        return [
            detector.update({"d/real": a, "d/fake": a, "samples/diversity": d}, 10 * n)
            for n, (a, d) in enumerate(part, first)
        ]

    whole, first, second = (CollapseDetector([WINS], min_images=100) for _ in range(3))
    expected = update(whole, 0, values)
    said = update(first, 0, values[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert said + update(second, len(values[:cut]), values[cut:]) == expected


def test_accuracies_are_the_shares_on_the_right_side_by_counting() -> None:
    real, fake = torch.tensor([[2.0], [0.5], [-1.0], [3.0]]), torch.tensor([[-2.0], [0.0], [0.7]])
    found = {name: value.item() for name, value in accuracies(real, fake).items()}
    assert found == pytest.approx({"accuracy_real": 3 / 4, "accuracy_fake": 2 / 3})
    found = {name: value.item() for name, value in accuracies(real, fake, 0.6).items()}
    assert found == pytest.approx({"accuracy_real": 2 / 4, "accuracy_fake": 2 / 3})


@pytest.mark.parametrize("name", model_names())
def test_the_signs_of_a_model_are_about_metrics_that_it_explains(name: str) -> None:
    module = model_module(name)
    signs = module.Model.signs_of_collapse
    assert [m for sign in signs for m in sign.metrics if m not in module.METRICS] == []


def test_a_word_in_the_job_file_turns_each_part_off(tmp_path: Path) -> None:
    """In older YAML ``off`` was a truth value."""
    text = "name: a\nmodel: {name: vae}\ndata: {train: x}\ntrain: {epochs: 1, batch_size: 4}\n"
    path = tmp_path / "job.yaml"
    path.write_text(text + "guard: {gradients: off, collapse: off, max_grad_norm_ratio: 5}\n")
    guard = load_job(path).job.guard
    assert (guard.gradients, guard.collapse, guard.max_grad_norm_ratio) == ("off", "off", 5)
    path.write_text(text)
    assert load_job(path).job.guard == GuardSection()
