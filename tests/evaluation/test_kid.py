"""The distance between two sets of images: its estimator and its features."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from orchestrator.evaluation import kid
from orchestrator.evaluation.kid import mmd2, random_features

ROOT = Path(__file__).parents[2]


def kernel(x: list[float], y: list[float]) -> float:
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def by_two_loops(xs: list[list[float]], ys: list[list[float]], *, paired: bool) -> float:
    """The estimator of KID's paper; ``paired``: without the pairs in its cross term."""
    n = len(xs)
    within = cross = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                within += (kernel(xs[i], xs[j]) + kernel(ys[i], ys[j])) / (n * (n - 1))
            if i != j or not paired:
                cross += kernel(xs[i], ys[j]) / (n * (n - 1) if paired else n * n)
    return within - 2 * cross


def test_the_estimate_agrees_with_two_loops() -> None:
    noise = Generator().manual_seed(0)
    for count, size in ((2, 1), (5, 3), (8, 240)):
        x, y = (torch.randn(count, size, generator=noise) for _ in range(2))
        expected = by_two_loops(x.tolist(), y.tolist(), paired=True)
        assert float(mmd2(x, y)) == pytest.approx(expected, rel=1e-12)
        assert float(mmd2(y, x)) == pytest.approx(expected, rel=1e-12)


def test_the_estimate_agrees_with_one_by_hand() -> None:
    """k(0, 0) = 1, k(1, 1) = 8, k(0, 1) = 1."""
    assert float(mmd2(torch.zeros(2, 1), torch.ones(2, 1))) == 1 + 8 - 2 * 1


def mean_and_error(values: list[float]) -> tuple[float, float]:
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("share", [0.0, 0.9], ids=["independent", "similar pairs"])
def test_the_mean_distance_of_two_samples_of_one_distribution_is_zero(share: float) -> None:
    """x_i and y_i have ``share`` of the variance in common, like an output and its target."""
    estimates, of_the_paper = [], []
    for seed in range(1500):
        common, *separate = torch.randn(3, 6, 2, generator=Generator().manual_seed(seed)).unbind()
        x, y = (math.sqrt(share) * common + math.sqrt(1 - share) * each for each in separate)
        estimates.append(float(mmd2(x, y)))
        if seed < 300:
            of_the_paper.append(by_two_loops(x.tolist(), y.tolist(), paired=False))
    mean, error = mean_and_error(estimates)
    assert abs(mean) < 2.5 * error
    assert min(estimates) < 0 < max(estimates)
    mean, error = mean_and_error(of_the_paper)
    assert (mean < -4 * error) == (share > 0)  # the reason to leave out the pairs


def test_the_mean_estimate_is_the_distance_of_the_distributions() -> None:
    """x is -1 or 1, y is 2, D = 1: E k(x, x') = 4, k(y, y) = 125, E k(x, y) = 13."""
    estimates = []
    for seed in range(1500):
        x = torch.randint(2, (5, 1), generator=Generator().manual_seed(seed)) * 2.0 - 1
        estimates.append(float(mmd2(x, torch.full((5, 1), 2.0))))
    mean, error = mean_and_error(estimates)
    assert mean == pytest.approx(4 + 125 - 2 * 13, abs=2.5 * error)


def pictures(count: int = 24, size: int = 32) -> Tensor:
    """Boxes in warm colours with black edges on white, (count, 3, size, size).

    A set with all colours would be unchanged by rotating them.
    """
    noise = Generator().manual_seed(5)
    images = torch.ones(count, 3, size, size)
    for image in images:
        for _ in range(3):
            top, left = torch.randint(1, size // 2, (2,), generator=noise).tolist()
            side = int(torch.randint(4, size // 2, (), generator=noise))
            colour = torch.rand(3, 1, 1, generator=noise) + torch.tensor([0, -0.5, -1]).view(
                3, 1, 1
            )
            image[:, top - 1 : top + side + 1, left - 1 : left + side + 1] = -1
            image[:, top : top + side, left : left + side] = colour
    return images


def blurred(images: Tensor, radius: float) -> Tensor:
    reach = int(radius)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, 1)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=Generator().manual_seed(6))
    return (images + deviation * noise).clamp(-1, 1)


def turned(images: Tensor, degrees: float) -> Tensor:
    """Rotate the colours around the axis of greys."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    same, before, after = (
        (1 + 2 * cos) / 3,
        (1 - cos) / 3 - sin / math.sqrt(3),
        (1 - cos) / 3 + sin / math.sqrt(3),
    )
    turn = torch.tensor([[same, before, after], [after, same, before], [before, after, same]])
    return torch.einsum("ij,njhw->nihw", turn, images).clamp(-1, 1)


@pytest.mark.parametrize(
    ("distort", "amounts"),
    [(blurred, (1, 2, 3, 5)), (noisy, (0.05, 0.1, 0.2, 0.4)), (turned, (15, 30, 60, 90))],
)
def test_the_distance_grows_with_the_distortion(
    distort: Callable[[Tensor, float], Tensor], amounts: tuple[float, ...]
) -> None:
    images = pictures()
    target = random_features(images)
    assert float(mmd2(target, target)) == 0
    found = [0.0, *(float(mmd2(random_features(distort(images, a)), target)) for a in amounts)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_the_features_are_means_and_deviations_of_each_level() -> None:
    images = pictures(3)
    x, expected = images, []
    for weight in kid._weights(3):
        x = F.conv2d(x, weight, stride=2, padding=1).clamp_min(0)
        expected += [x.mean((2, 3)), x.std((2, 3), correction=0)]
    torch.testing.assert_close(random_features(images), torch.cat(expected, 1))
    assert [len(weight) for weight in kid._weights(3)] == list(kid.WIDTHS)
    for level, weight in enumerate(kid._weights(3)):
        fan_in = 9 * (3, *kid.WIDTHS)[level]
        assert float(weight.square().mean() * fan_in) == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 4), (3, 1), (3, 100)])
def test_the_number_of_features_does_not_depend_on_the_images(channels: int, size: int) -> None:
    images = torch.rand(2, channels, size, size, generator=Generator().manual_seed(1)) * 2 - 1
    features = random_features(images)
    assert features.shape == (2, 2 * sum(kid.WIDTHS))
    assert 2 * sum(kid.WIDTHS) <= 256
    assert features.isfinite().all()


def test_the_features_have_the_scale_of_the_pixels() -> None:
    """At this scale no term of the cubic kernel dominates."""
    for images in (pictures(), torch.ones(1, 3, 64, 64)):
        assert 0.05 < random_features(images).square().mean() < 2


def test_the_features_of_an_image_do_not_depend_on_other_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pictures(7)
    whole = random_features(images)
    monkeypatch.setattr(kid, "IMAGES_PER_PASS", 3)
    torch.testing.assert_close(random_features(images), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(random_features(images[4:5]), whole[4:5], rtol=1e-6, atol=1e-6)


DIGEST = """
import hashlib, torch
from orchestrator.evaluation.kid import random_features
torch.set_num_threads(1)
torch.manual_seed(77)
ramp = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
print(hashlib.sha256(random_features(ramp).numpy().tobytes()).hexdigest())
"""


def test_features_do_not_depend_on_the_seed_or_process_and_leave_generators_unchanged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kid._weights.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    random_features(pictures(2))
    assert torch.equal(torch.get_rng_state(), before)
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    threads = torch.get_num_threads()
    exec(DIGEST.replace("manual_seed(77)", "manual_seed(78)"), {})
    torch.set_num_threads(threads)
    assert capsys.readouterr().out == there
    assert len(there.strip()) == len(hashlib.sha256().hexdigest())
