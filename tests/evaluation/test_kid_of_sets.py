"""The KID of two independent sets: its estimate, its blocks and its intervals."""

import pytest
import torch
from torch import Tensor

from orchestrator.evaluation import kid as kid_module
from orchestrator.evaluation.intervals import (
    bootstrap_weights,
    mean_interval,
    percentile_interval,
    real_floors,
)
from orchestrator.evaluation.kid import (
    kid,
    kid_difference,
    kid_interval,
    kid_of_blocks,
    weighted_kid,
)
from support.drawn_features import correlated


def kernel(x: list[float], y: list[float]) -> float:
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_loops(xs: list[list[float]], ys: list[list[float]]) -> float:
    """The paper's estimator, written slowly."""
    same = [
        mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
        for s in (xs, ys)
    ]
    return sum(same) - 2 * mean([kernel(x, y) for x in xs for y in ys])


@pytest.mark.parametrize(("n", "m", "size"), [(2, 3, 1), (7, 4, 5), (12, 20, 30)])
def test_it_equals_a_double_loop(n: int, m: int, size: int) -> None:
    x, y = correlated(n, size, 1, shift=0.3), correlated(m, size, 2)
    expected = by_loops(x.tolist(), y.tolist())
    assert kid(x, y) == pytest.approx(expected, rel=1e-12)
    assert kid(y, x) == pytest.approx(expected, rel=1e-12)


def test_weights_are_numbers_of_copies_without_the_pairs_of_an_image_with_itself() -> None:
    x, y = correlated(4, 3, 1), correlated(3, 3, 2)
    a, b = [2, 0, 1, 1], [0, 1, 2]
    xs = [(i, x[i].tolist()) for i in range(4) for _ in range(a[i])]
    ys = [(i, y[i].tolist()) for i in range(3) for _ in range(b[i])]
    same = [mean([kernel(p, q) for i, p in s for j, q in s if i != j]) for s in (xs, ys)]
    expected = sum(same) - 2 * mean([kernel(p, q) for _, p in xs for _, q in ys])
    weights = (torch.tensor([w], dtype=torch.float64) for w in (a, b))
    assert float(weighted_kid(x, y, *weights)) == pytest.approx(expected, rel=1e-12)


def test_large_sets_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = correlated(30, 5, 1), correlated(25, 5, 2)
    whole = kid(x, y)
    monkeypatch.setattr(kid_module, "ROWS", 7)
    assert kid(x, y) == pytest.approx(whole, rel=1e-12)


def test_it_equals_torch_fidelity_over_whole_sets_and_over_blocks() -> None:
    from torch_fidelity.metric_kid import kernel_mmd

    arguments = {
        "kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1,
    }  # fmt: skip
    generated, real = correlated(90, 40, 1, shift=0.2).double(), correlated(97, 40, 2).double()
    expected = kernel_mmd(generated[:90].numpy(), real[:90].numpy(), **arguments)
    assert kid(generated, real[:90]) == pytest.approx(expected, rel=1e-9)

    blocks = kid_of_blocks(generated, real, 30)
    by_fidelity = [
        kernel_mmd(x.numpy(), y.numpy(), **arguments)
        for x, y in zip(generated.split(30), real[:90].split(30), strict=True)
    ]
    torch.testing.assert_close(blocks, torch.tensor(by_fidelity).double(), rtol=1e-9, atol=0)
    assert len(kid_of_blocks(generated, real, 40)) == 2


def splits(number: int, count: int = 240, size: int = 48) -> list[tuple[Tensor, Tensor]]:
    """Random halves of one set of real images."""
    real = correlated(count, size, 5)
    orders = (
        torch.randperm(count, generator=torch.Generator().manual_seed(s)) for s in range(number)
    )
    return [(real[order[: count // 2]], real[order[count // 2 :]]) for order in orders]


def test_the_interval_of_real_against_real_covers_0_in_at_least_90_of_100_splits() -> None:
    covered = sum(0 in kid_interval(x, y, resamples=300) for x, y in splits(100))
    assert covered >= 90


def test_a_bootstrap_that_pairs_copies_of_an_image_takes_real_images_for_others() -> None:
    """Why copies are left out: the naive interval lies above 0 for nearly every split."""
    covered = 0
    for x, y in splits(20):
        a, b = bootstrap_weights(len(x), 300), bootstrap_weights(len(y), 300, seed=1)
        naive = weighted_kid(x, y, a, b)
        for z, w in ((x, a), (y, b)):
            z_double = z.double()
            whole = (z_double @ z_double.T / z.shape[1] + 1) ** 3
            diagonal = whole.diagonal()
            n = len(z)
            total = ((w @ whole) * w).sum(1)
            right = (total - w.square() @ diagonal) / (n * n - w.square().sum(1))
            naive += (total - w @ diagonal) / (n * (n - 1)) - right
        covered += 0 in percentile_interval(naive)
    assert covered <= 4


def test_the_interval_of_other_images_excludes_0_and_has_the_value() -> None:
    x, y = correlated(150, 48, 1, shift=0.4), correlated(180, 48, 2)
    interval = kid_interval(x, y)
    assert 0 < interval.low < kid(x, y) < interval.high
    assert kid_interval(x, y) == interval
    assert kid_interval(x, y, seed=9) != interval


def test_intervals_are_about_as_wide_as_the_value_varies() -> None:
    """The spread over independent drawings is the truth, which the interval estimates from one."""
    drawn = [
        (correlated(150, 48, 2 * s, shift=0.3), correlated(150, 48, 2 * s + 1)) for s in range(60)
    ]
    spread = float(torch.tensor([kid(x, y) for x, y in drawn]).std())
    intervals = [kid_interval(x, y, resamples=300) for x, y in drawn[:20]]
    widths = [(each.high - each.low) / (2 * 1.96) for each in intervals]
    assert 0.75 * spread < mean(widths) < 1.6 * spread


def test_the_difference_of_two_candidates_cancels_the_reference() -> None:
    """Candidates of the same quality on the same reference, and one that is worse."""
    reference = correlated(60, 48, 100)
    equal, worse, apart = 0, 0, 0
    for seed in range(20):
        a, b = (
            correlated(150, 48, 2 * seed, shift=0.2),
            correlated(150, 48, 2 * seed + 1, shift=0.2),
        )
        bad = correlated(150, 48, 2 * seed + 1, shift=0.35)
        value, interval = kid_difference(a, b, reference, resamples=300)
        assert value == pytest.approx(kid(a, reference) - kid(b, reference), rel=1e-9)
        equal += 0 in interval
        worse += kid_difference(a, bad, reference, resamples=300)[1].high < 0
        # Without the common reference, the intervals of the two would have to be disjoint.
        first, second = (
            kid_interval(a, reference, resamples=300),
            kid_interval(bad, reference, resamples=300),
        )
        apart += first.high < second.low
    assert equal >= 18
    assert worse >= 12
    assert apart < worse


def test_a_pairing_of_the_candidates_makes_their_difference_sharper() -> None:
    noise = correlated(120, 48, 3, shift=0.2)
    other = noise + 0.02 * correlated(120, 48, 4)
    reference = correlated(120, 48, 5)
    paired = kid_difference(noise, other, reference, paired=True)[1]
    apart = kid_difference(noise, other, reference)[1]
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)


def test_blocks_have_an_interval_too() -> None:
    x, y = correlated(1000, 16, 1), correlated(1000, 16, 2)
    values = kid_of_blocks(x, y, 50)
    assert len(values) == 20
    assert 0 in mean_interval(values)


def test_the_floor_of_the_kid_is_around_0() -> None:
    real = correlated(400, 32, 1)
    (floor,) = real_floors(lambda i, j: [kid(real[i], real[j])], len(real), 1000, splits=10)
    assert floor.n == 200
    assert floor.low < 0 < floor.high
    assert abs(floor.mean) < 0.1 * kid(real, correlated(400, 32, 2, shift=0.5))
