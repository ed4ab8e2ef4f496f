"""Distances between images (B, C, H, W) in [-1, 1]: one value per image."""

from torch import Tensor


def l1_distance(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of each image, (B,) in [0, 2]: the L1 of pix2pix (equation 3)."""
    return (images - targets).abs().flatten(1).mean(1)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B,) in dB, for a peak-to-peak range of 2.

    10 log10(2^2 / MSE). The ratio of equal images is capped at 100 dB, so that a mean over images
    stays finite.
    """
    mse = (images - targets).square().flatten(1).mean(1)
    return 10 * (4 / mse.clamp_min(4e-10)).log10()
