"""Decisions of the divergence guard, from numbers alone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.job import GuardSection
from orchestrator.config.load import load_job
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


def test_single_updates_that_are_not_finite_are_skipped() -> None:
    guard = DivergenceGuard(GuardSection(max_consecutive_skips=1))
    assert actions(guard, [1.0, math.nan, 1.0, math.inf, 1.0]) == [
        "continue", "skip", "continue", "skip", "continue",
    ]  # fmt: skip
    assert guard.metrics() == {"guard/skipped_updates": 2.0, "guard/rollbacks": 0.0}


def test_one_skip_too_many_rolls_back_and_one_rollback_too_many_stops() -> None:
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


def test_after_a_rollback_to_between_two_skips_as_many_are_allowed_as_at_first() -> None:
    guard = DivergenceGuard(GuardSection(max_consecutive_skips=2))
    assert actions(guard, [math.nan, math.nan]) == ["skip", "skip"]
    saved = guard.state_dict()
    assert actions(guard, [math.nan]) == ["rollback"]
    roll_back(guard, saved)
    assert actions(guard, [math.nan, math.nan, 1.0]) == ["skip", "skip", "continue"]
    assert guard.metrics() == {"guard/skipped_updates": 5.0, "guard/rollbacks": 1.0}


def test_each_phase_is_counted_separately() -> None:
    """A phase that runs every fifth step is not helped by the finite gradients of another."""
    guard = DivergenceGuard(GuardSection(max_consecutive_skips=1))
    assert actions(guard, [math.nan], "generator") == ["skip"]
    assert actions(guard, [1.0] * 5, "discriminator") == ["continue"] * 5
    assert guard.last_update_skipped
    assert actions(guard, [math.nan], "generator") == ["rollback"]


def test_without_skips_and_rollbacks_the_first_problem_stops() -> None:
    assert actions(
        DivergenceGuard(GuardSection(max_consecutive_skips=0, max_rollbacks=0)), [math.nan]
    ) == ["stop"]


def test_a_spike_is_skipped_only_if_it_is_configured_and_after_enough_norms() -> None:
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
def test_a_restored_guard_decides_as_the_original(
    norms: list[tuple[str, float]], cut: int, spike: float | None
) -> None:
    settings = GuardSection(max_grad_norm_ratio=spike, max_consecutive_skips=2)
    whole = DivergenceGuard(settings)
    expected = [whole.decide(*one) for one in norms]
    first, second = DivergenceGuard(settings), DivergenceGuard(settings)
    decisions = [first.decide(*one) for one in norms[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert decisions + [second.decide(*one) for one in norms[cut:]] == expected
    assert second.state_dict() == whole.state_dict()


@given(norms=st.lists(NORM, max_size=60), skips=st.integers(0, 4), rollbacks=st.integers(0, 3))
def test_only_finite_norms_continue_and_the_guard_always_stops(
    norms: list[float], skips: int, rollbacks: int
) -> None:
    guard, skips_in_a_row, num_rollbacks = (
        DivergenceGuard(GuardSection(max_consecutive_skips=skips, max_rollbacks=rollbacks)),
        0,
        0,
    )
    for norm in norms:
        action = guard.decide("a", norm).action
        if math.isfinite(norm):
            skips_in_a_row = 0
            assert action == "continue"
            continue
        skips_in_a_row += 1
        if skips_in_a_row <= skips:
            assert action == "skip"
        elif num_rollbacks < rollbacks:
            assert action == "rollback"
            roll_back(guard)
            skips_in_a_row, num_rollbacks = 0, num_rollbacks + 1
        else:
            assert action == "stop"
            break
    assert guard.rollbacks == num_rollbacks <= rollbacks


def test_off_in_a_job_file_disables_each_part(tmp_path: Path) -> None:
    """In YAML 1.1, ``off`` was a boolean."""
    text = "name: a\nmodel: {name: vae}\ndata: {train: x}\ntrain: {epochs: 1, batch_size: 4}\n"
    path = tmp_path / "job.yaml"
    path.write_text(text + "guard: {gradients: off, collapse: off, max_grad_norm_ratio: 5}\n")
    guard = load_job(path).job.guard
    assert (guard.gradients, guard.collapse, guard.max_grad_norm_ratio) == ("off", "off", 5)
    path.write_text(text)
    assert load_job(path).job.guard == GuardSection()
