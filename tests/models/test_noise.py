"""Noise that belongs to a sample: the same wherever it is drawn, and as random as it should be."""

import hashlib

import pytest
import torch

from orchestrator.models.base import Batch
from orchestrator.models.parts.noise import dropout, integers, normal, uniform

MASK = 2**64 - 1


def bits_by_hand(position: int, index: int, start: int) -> int:
    """Compute 64 bits with Python's unbounded integers."""

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    weyl = 0x9E3779B97F4A7C15
    sample = mixed((position * weyl + start) & MASK)
    return mixed((sample + index * weyl) & MASK)


def by_hand(position: int, index: int, start: int) -> float:
    """Compute one number in (0, 1)."""
    return ((bits_by_hand(position, index, start) >> 41) + 0.5) / 2**23


def start_of(key: str) -> int:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") - 2**63) & MASK


def test_numbers_equal_the_hash_in_unbounded_integers() -> None:
    start = start_of("7 z")
    positions = torch.tensor([0, 1, 5_000_000_000])
    drawn = uniform(positions, "7 z", (3,)).tolist()
    wanted = [[by_hand(int(p), i, start) for i in (1, 2, 3)] for p in positions]
    assert drawn == wanted


def test_dropout_keeps_what_the_hash_says_and_scales_it() -> None:
    seeds, start = torch.tensor([0, 9, 2**62]), start_of("dropout 1")
    x = torch.arange(1.0, 1 + 3 * 2 * 5).view(3, 2, 5)
    drawn = dropout(x, 0.75, seeds, "dropout 1").flatten(1).tolist()
    wanted = [
        [4 * v * (by_hand(int(seed), i, start) >= 0.75) for i, v in enumerate(row.tolist(), 1)]
        for seed, row in zip(seeds, x.flatten(1), strict=True)
    ]
    assert drawn == wanted
    share = (dropout(torch.ones(50, 4000), 0.3, torch.arange(50), "x") == 0).double().mean()
    assert share.item() == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 4096, 1_000_000])
def test_integers_are_spread_evenly_and_stay_below_their_count(count: int) -> None:
    drawn = integers(torch.arange(100_000), "class", count)
    assert drawn.dtype == torch.int64
    assert 0 <= drawn.min() <= drawn.max() < count
    groups = min(count, 100)
    expected = (torch.arange(count) * groups // count).bincount() * (100_000 / count)
    counts = (drawn * groups // count).bincount(minlength=groups)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    start = start_of("class")
    assert drawn[:5].tolist() == [(bits_by_hand(i, 1, start) >> 1) % count for i in range(5)]


def test_a_sample_has_the_same_noise_in_any_batch() -> None:
    def batch(positions: list[int], seed: int = 3) -> Batch:
        images = torch.zeros(len(positions), 3, 4, 4)
        return Batch(images, torch.tensor(positions), seed=seed)

    whole = batch([4, 5, 6, 7]).normal("z", 10)
    parts = torch.cat([part.normal("z", 10) for part in batch([4, 5, 6, 7]).split(3)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole[[1, 3]], batch([5, 7]).normal("z", 10))
    assert not torch.equal(whole, batch([4, 5, 6, 7], seed=4).normal("z", 10))
    assert not torch.equal(whole, batch([4, 5, 6, 7]).normal("pool", 10))


@pytest.mark.parametrize("along", ["positions", "indices"])
def test_uniform_numbers_pass_simple_tests_of_randomness(along: str) -> None:
    if along == "positions":
        values = uniform(torch.arange(200_000), "0 z", (2,)).T
    else:
        values = uniform(torch.tensor([0, 1]), "0 z", (200_000,))
    for row in values:
        counts = torch.histc(row, 100, 0, 1)
        chi_square = ((counts - 2000) ** 2 / 2000).sum()
        assert 50 < chi_square < 160  # 99 degrees of freedom: mean 99, deviation 14
        assert abs(torch.corrcoef(torch.stack([row[:-1], row[1:]]))[0, 1]) < 0.01
    assert abs(torch.corrcoef(values)[0, 1]) < 0.01
    assert values.min() > 0
    assert values.max() < 1


def test_normal_numbers_have_the_moments_and_tails_of_the_normal_distribution() -> None:
    values = normal(torch.arange(1000), "0 z", (500,)).double().flatten()
    moments = [values.mean(), values.var(), (values**3).mean(), (values**4).mean()]
    assert torch.stack(moments).tolist() == pytest.approx([0, 1, 0, 3], abs=0.03)
    reference = torch.distributions.Normal(0, 1)
    for edge in (-2.0, 0.5, 3.0):
        share = (values < edge).double().mean().item()
        assert share == pytest.approx(reference.cdf(torch.tensor(edge)).item(), abs=0.003)
    assert values.isfinite().all()


def test_normal_numbers_are_independent_within_and_between_samples() -> None:
    values = normal(torch.arange(20_000), "0 z", (8,))
    table = torch.corrcoef(values.T)
    assert (table - torch.eye(8)).abs().max() < 0.03
    assert torch.corrcoef(values[:2000])[0, 1:].abs().mean() < 0.5
