"""SSIM and MS-SSIM against their definition written slowly, and against torchmetrics."""

import math

import pytest
import torch
from torch import Generator, Tensor

from orchestrator.evaluation.intervals import mean_interval
from orchestrator.evaluation.similarity import (
    ms_ssim,
    ms_ssim_scales,
    pair_similarities,
    ssim,
)


def images(count: int, channels: int, size: int, seed: int) -> Tensor:
    """Smooth images in [-1, 1] with some noise."""
    noise = Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 6, 6, generator=noise) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=noise)).clamp(-1, 1)


def by_windows(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Equations 13 to 16 of Wang et al. for one channel: mean similarity, and its contrast term.

    On values 0 to 255, as they publish it, one window at a time.
    """
    x, y = ((each.double() + 1) * 127.5 for each in (x, y))
    weights = [
        [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)
    ]
    window = torch.tensor(weights, dtype=torch.float64)
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    whole, contrasts = [], []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = (window * (a - mean_a) ** 2).sum()
            var_b = (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            contrast = (2 * both + c2) / (var_a + var_b + c2)
            contrasts.append(float(contrast))
            whole.append(
                float((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast)
            )
    return sum(whole) / len(whole), sum(contrasts) / len(contrasts)


@pytest.mark.parametrize("size", [11, 20])
def test_ssim_is_its_definition(size: int) -> None:
    x, y = images(2, 3, size, 1), images(2, 3, size, 2)
    y = 0.6 * x + 0.4 * y
    expected = [sum(by_windows(x[i, c], y[i, c])[0] for c in range(3)) / 3 for i in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_ms_ssim_is_its_definition() -> None:
    """Two scales: the contrast of the finer, the similarity of the coarser."""
    x, y = images(1, 1, 24, 1), images(1, 1, 24, 2)
    y = 0.6 * x + 0.4 * y
    halved = [each.view(12, 2, 12, 2).mean((1, 3)) for each in (x, y)]
    (_, contrast), (similarity, _) = by_windows(x[0, 0], y[0, 0]), by_windows(*halved)
    total = 0.0448 + 0.2856
    published = 0.0448 + 0.2856 + 0.3001 + 0.2363 + 0.1333
    expected = (contrast**0.0448 * similarity**0.2856) ** (published / total)
    assert ms_ssim_scales(x) == 2
    assert float(ms_ssim(x, y)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_they_equal_torchmetrics() -> None:
    """Its SSIM also averages over windows that reach into a mirrored border, which we cut off.

    It takes values as they come, so they are given in [0, 1]. Its map is compared.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = images(3, 3, 64, 1), images(3, 3, 64, 2)
    y = 0.5 * x + 0.5 * y
    _, full = structural_similarity_index_measure(
        (x + 1) / 2, (y + 1) / 2, data_range=1.0, reduction="none", return_full_image=True
    )
    expected = full[..., 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(ssim(x, y), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_ms_ssim_at_five_scales_equals_torchmetrics_but_for_the_border() -> None:
    from torchmetrics.functional.image.ssim import _get_normalized_sim_and_cs, _ssim_update

    x, y = images(2, 3, 192, 3).double(), images(2, 3, 192, 4).double()
    y = 0.7 * x + 0.3 * y
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    expected = torch.ones(2, dtype=torch.float64)
    a, b = (x + 1) / 2, (y + 1) / 2
    for scale, weight in enumerate(weights):
        _, contrast = _get_normalized_sim_and_cs(a, b, data_range=1.0, normalize="relu")
        full = _ssim_update(a, b, data_range=1.0, return_full_image=True)[1]
        similarity = full[..., 5:-5, 5:-5].flatten(1).mean(1)
        expected *= (similarity if scale == 4 else contrast) ** weight
        a, b = torch.nn.functional.avg_pool2d(a, 2), torch.nn.functional.avg_pool2d(b, 2)
    assert ms_ssim_scales(x) == 5
    torch.testing.assert_close(ms_ssim(x, y), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "scales"), [(11, 1), (21, 1), (22, 2), (28, 2), (64, 3), (128, 4), (176, 5), (512, 5)]
)
def test_the_number_of_scales_is_what_fits(size: int, scales: int) -> None:
    assert ms_ssim_scales(torch.empty(1, 1, size, 2 * size, device="meta")) == scales


def test_opposite_images_have_0_and_not_nan() -> None:
    x = images(2, 1, 64, 1)
    assert ms_ssim(x, -x).tolist() == [0, 0]
    assert ssim(x, -x).max() < 0


def test_pairs_of_diverse_images_are_less_alike() -> None:
    many = images(60, 1, 32, 1)
    few = many[:3].repeat_interleave(20, 0)
    noisy = (few + 0.05 * torch.randn(few.shape, generator=Generator().manual_seed(2))).clamp(-1, 1)
    diverse, collapsed = pair_similarities(many), pair_similarities(noisy)
    assert diverse.shape == (30,)
    assert mean_interval(diverse).high < mean_interval(collapsed).low


def test_each_image_is_in_one_pair_at_most() -> None:
    """Images of two kinds: a pair of one kind has 1, a mixed pair has less."""
    kinds = images(2, 1, 16, 1)
    values = pair_similarities(torch.cat([kinds[:1].expand(9, -1, -1, -1), kinds[1:]]))
    assert (values < 0.99).sum() == 1
    assert len(values) == 5
