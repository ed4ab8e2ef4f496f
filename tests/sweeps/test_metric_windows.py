"""Metric windows, compared with a slow implementation and with uninterrupted trials."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweeps.metric_windows import MetricWindow, WindowResult

LoggedPoints = tuple[int, Mapping[str, float]]


def results_of(
    points: Sequence[LoggedPoints], metrics: Sequence[str], every: int, total: int, seen: int = 0
) -> list[WindowResult]:
    """Compute all results of a trial."""
    window = MetricWindow(metrics, every, total, seen)
    return [result for at_step in points for result in window.add(*at_step)]


def slow_results(
    points: Sequence[LoggedPoints], metrics: Sequence[str], every: int, total: int
) -> list[WindowResult]:
    """Compute exact means up to the first step at or after each multiple of ``every``."""
    steps = sorted({images for images, _ in points})
    ends: list[int] = []
    for images in steps:
        last = ends[-1] if ends else 0
        if any(last < n * every <= images for n in range(1, total)) or images == total:
            ends.append(images)
    found = []
    for last, end in zip([0, *ends], ends, strict=False):
        means = []
        for metric in metrics:
            own = [Fraction(p[metric]) for n, p in points if last < n <= end and metric in p]
            means.append(float(sum(own) / len(own)) if own else math.nan)
        found.append(WindowResult(end, tuple(means)))
    return found


def same(some: Sequence[WindowResult], others: Sequence[WindowResult]) -> bool:
    """Compare with NaN equal to NaN; means may differ in the last digit."""
    return [result.images_seen for result in some] == [
        result.images_seen for result in others
    ] and all(
        a == pytest.approx(b, rel=1e-14, nan_ok=True)
        for one, other in zip(some, others, strict=True)
        for a, b in zip(one.values, other.values, strict=True)
    )


def test_means_match_a_slow_implementation() -> None:
    """Metrics are logged together, one by one or not at all, and steps skip multiples."""
    lengths = set()
    for seed in range(500):
        rng = random.Random(seed)
        step, every = rng.choice([1, 4, 16]), rng.choice([5, 16, 40, 64])
        total = step * rng.randint(1, 60)
        metrics = ["a", "b"][: rng.randint(1, 2)]
        points: list[LoggedPoints] = []
        for images in range(step, total, step):
            names = [n for n in ("a", "b", "other") if rng.random() < rng.choice([0.2, 0.9])]
            rng.shuffle(names)
            if rng.random() < 0.5:
                points.append((images, {name: rng.gauss(0, 1) for name in names}))
            else:
                points += [(images, {name: rng.gauss(0, 1)}) for name in names]
        # Every run logs all metrics at its end.
        points.append((total, {name: rng.gauss(0, 1) for name in metrics}))
        found = results_of(points, metrics, every, total)
        assert same(found, slow_results(points, metrics, every, total)), seed
        lengths.add(len(found))
    assert {1, 2, 5, 20} <= lengths


def test_a_window_starts_after_the_previous_result() -> None:
    points = [(n, {"loss": float(n), "other": 99.0}) for n in range(10, 70, 10)]
    assert results_of(points, ["loss"], 30, 60) == [
        WindowResult(30, (20.0,)),
        WindowResult(60, (50.0,)),
    ]


def test_a_mean_of_many_points_is_not_rounded_on_the_way() -> None:
    points = [(n, {"loss": 0.1}) for n in range(1, 11)]
    assert results_of(points, ["loss"], 10, 10) == [WindowResult(10, (0.1,))]
    assert sum([0.1] * 10) / 10 != 0.1


def test_a_window_completes_with_its_last_metric_and_not_a_step_later() -> None:
    """So it is reported before that step is saved; validation is logged after the losses."""
    window = MetricWindow(["loss", "validation/l1"], 20, 40, 0)
    assert window.add(10, {"loss": 1.0}) == []
    assert window.add(20, {"loss": 3.0}) == []
    assert window.add(20, {"validation/l1": 7.0}) == [WindowResult(20, (2.0, 7.0))]
    assert window.add(20, {"validation/kid": 0.0}) == []
    assert window.add(30, {"loss": 4.0}) == []
    assert window.add(40, {"validation/l1": 8.0}) == []
    assert window.add(40, {"loss": 6.0}) == [WindowResult(40, (5.0, 8.0))]


def test_a_missing_metric_is_nan_and_delays_the_result_by_one_step_only() -> None:
    window = MetricWindow(["loss", "validation/l1"], 20, 60, 0)
    assert window.add(20, {"loss": 1.0}) == []
    [late] = window.add(30, {"loss": 2.0})
    assert late.images_seen == 20
    assert late.values[0] == 1.0
    assert math.isnan(late.values[1])
    # A metric that is missing at the last step counts if it was logged earlier in the window.
    assert window.add(35, {"validation/l1": 5.0}) == []
    assert window.add(40, {"loss": 4.0}) == []
    assert window.add(50, {}) == [WindowResult(40, (3.0, 5.0))]


def test_a_nonfinite_value_makes_its_mean_nonfinite() -> None:
    for bad in (math.nan, math.inf):
        [result] = results_of([(1, {"a": 1.0}), (2, {"a": bad})], ["a"], 2, 2)
        assert not math.isfinite(result.values[0])


def test_the_end_of_a_trial_completes_a_window() -> None:
    points = [(n, {"loss": float(n)}) for n in range(10, 60, 10)]
    assert results_of(points, ["loss"], 20, 50)[-1] == WindowResult(50, (50.0,))


def test_a_window_that_ends_while_the_samples_are_alike_counts_as_the_worst() -> None:
    """Against a second writing: NaN exactly while the last grid drawn before was collapsed."""
    window = MetricWindow(["began/m_global"], 20, 100, 0)
    drawn = {10: 0.0, 30: 1.0, 50: 1.0, 70: 0.0, 90: 1.0}
    found, expected = [], []
    for images in range(10, 101, 10):
        found += window.add(images, {"began/m_global": 0.5})
        if images in drawn:
            assert window.add(images, {"samples/collapsed": drawn[images]}) == []
        if images % 20 == 0:
            newest = drawn[max(n for n in drawn if n < images)]
            expected.append((images, math.nan if newest else 0.5))
    assert [(r.images_seen, str(r.values[0])) for r in found] == [(n, str(v)) for n, v in expected]
    assert window.is_collapsed


def test_a_reported_result_is_not_repeated() -> None:
    assert MetricWindow(["a"], 10, 100, 50).add(50, {"a": 1.0}) == []


@given(data=st.data())
def test_a_resumed_trial_has_the_results_of_an_uninterrupted_one(data: st.DataObject) -> None:
    """It resumes from a checkpoint of any step.

    A process that died may have trained past its checkpoint, and one that was asked to stop may
    have saved before the validation of its last step.
    """
    batch = data.draw(st.integers(1, 40), "batch size")
    log, logs = data.draw(st.integers(1, 60), "log_every"), data.draw(st.integers(1, 4), "times")
    every, steps = log * logs, data.draw(st.integers(1, 60), "steps")
    total = batch * steps
    kinds = [["loss"], ["validation/l1"], ["validation/l1", "loss"], ["loss", "other"]]
    metrics = data.draw(st.sampled_from(kinds), "metrics")
    rng = random.Random(data.draw(st.integers(0, 999), "seed"))
    values = [(rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(steps)]

    def is_due(step: int, interval: int) -> bool:
        now = (step + 1) * batch
        return now >= total or (now - batch) // interval != now // interval

    def logged(step: int) -> list[LoggedPoints]:
        images, (loss, other, _) = (step + 1) * batch, values[step]
        return [(images, {"loss": loss, "other": other})] if is_due(step, log) else []

    def validated(step: int) -> list[LoggedPoints]:
        """The points of an evaluation: the validation, and then the samples."""
        images, (loss, _, l1) = (step + 1) * batch, values[step]
        drawn = {"samples/collapsed": float(loss > 0.5)}
        return [(images, {"validation/l1": l1}), (images, drawn)] if is_due(step, every) else []

    all_logged = [m for step in range(steps) for m in (*logged(step), *validated(step))]
    uninterrupted = results_of(all_logged, metrics, every, total)
    reported: list[WindowResult] = []
    Saved = tuple[int, bool, str]  # next step, whether a validation is pending, the window's state
    saved: list[Saved] = [(0, False, "{}")]
    for _ in range(data.draw(st.integers(0, 3), "times interrupted")):
        # The newest checkpoint may be corrupt.
        start, eval_pending, state = data.draw(st.sampled_from(saved[-2:]), "resumes from")
        window = MetricWindow(metrics, every, total, reported[-1].images_seen if reported else 0)
        window.load_state_dict(json.loads(state))
        end = data.draw(st.integers(start, steps), "interrupted before this step")
        stopped = data.draw(st.booleans(), "by a stop request") and end > start
        reported += [
            result
            for m in (validated(start - 1) if eval_pending else [])
            for result in window.add(*m)
        ]
        for step in range(start, end):
            reported += [result for at_step in logged(step) for result in window.add(*at_step)]
            if stopped and step == end - 1:
                saved.append((end, True, json.dumps(window.state_dict())))
                break
            reported += [result for at_step in validated(step) for result in window.add(*at_step)]
            if is_due(step, every):
                saved.append((step + 1, False, json.dumps(window.state_dict())))
    start, eval_pending, state = saved[-1]
    window = MetricWindow(metrics, every, total, reported[-1].images_seen if reported else 0)
    window.load_state_dict(json.loads(state))
    reported += [
        result for m in (validated(start - 1) if eval_pending else []) for result in window.add(*m)
    ]
    for step in range(start, steps):
        all_logged = [*logged(step), *validated(step)]
        reported += [result for at_step in all_logged for result in window.add(*at_step)]
    assert reported == uninterrupted


def test_a_rollback_neither_repeats_results_nor_counts_points_twice() -> None:
    window = MetricWindow(["loss"], 20, 60, 0)
    assert window.add(10, {"loss": 1.0}) == []
    state = window.state_dict()
    assert window.add(20, {"loss": 3.0}) == [WindowResult(20, (2.0,))]
    assert window.add(30, {"loss": 100.0}) == []
    window.load_state_dict(state)
    assert window.add(20, {"loss": 5.0}) == []
    assert window.add(30, {"loss": 7.0}) == []
    assert window.add(40, {"loss": 9.0}) == [WindowResult(40, (8.0,))]
