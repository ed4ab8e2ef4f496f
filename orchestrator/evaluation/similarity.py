"""Structural similarity of images (B, C, H, W) in [-1, 1]: one value per image."""

from functools import lru_cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

WINDOW = 11
"""Pixels of the window's side; images must be at least as large."""
SIGMA = 1.5
LUMINANCE, CONTRAST = 0.01**2, 0.03**2
"""The constants C1 and C2, for values in [0, 1]."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales of MS-SSIM, from the finest."""


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image, (B,) in [-1, 1]; 1 for equal images.

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment", equation 13: a Gaussian
    window of 11 x 11 pixels with a deviation of 1.5, averaged over the windows that lie within the
    image and over channels. https://doi.org/10.1109/TIP.2003.819861
    """
    return _similarity_and_contrast(images, targets)[0]


def ms_ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image, (B,) in [0, 1]; 1 for equal images.

    Wang, Simoncelli and Bovik 2003, equation 7, https://doi.org/10.1109/ACSSC.2003.1292216: the
    product of the contrast terms of the finer scales and the similarity at the coarsest, each to
    the power of its weight; a scale halves the image by averaging 2 x 2 pixels. A negative term
    counts as 0. Images below 161 pixels have room for fewer than 5 scales (``ms_ssim_scales``):
    the weights of those that fit grow to the same sum, so compare images of one size.
    """
    scales = ms_ssim_scales(images)
    weights = SCALE_WEIGHTS[:scales]
    growth = sum(SCALE_WEIGHTS) / sum(weights)
    product = images.new_ones(len(images))
    for scale, weight in enumerate(weights, start=1):
        similarity, contrast = _similarity_and_contrast(images, targets)
        term = similarity if scale == scales else contrast
        product = product * term.clamp_min(0) ** (weight * growth)
        if scale < scales:
            images, targets = F.avg_pool2d(images, 2), F.avg_pool2d(targets, 2)
    return product


def ms_ssim_scales(images: Tensor) -> int:
    """Return the number of scales, 1 to 5, at which the window lies within the images."""
    side = min(images.shape[-2:])
    assert side >= WINDOW, f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels"
    fit = [scale for scale in range(len(SCALE_WEIGHTS)) if (side >> scale) >= WINDOW]
    return len(fit)


def pair_similarities(images: Tensor, *, batch: int = 64, seed: int = 0) -> Tensor:
    """Return the MS-SSIM of random pairs of the images, (B // 2,): low if they are diverse.

    Odena, Olah and Shlens 2017, section 4.2, https://arxiv.org/abs/1610.09585, compare the images
    of one class. Here each image is in one pair at most, so that the pairs are independent and
    ``mean_interval`` holds for their mean. Compare it with that of as many real images.
    """
    order = torch.randperm(len(images), generator=Generator().manual_seed(seed))
    first, second = order[: 2 * (len(images) // 2)].view(-1, 2).unbind(1)
    chunks = zip(first.split(batch), second.split(batch), strict=True)
    return torch.cat([ms_ssim(images[i], images[j]).cpu() for i, j in chunks])


def _similarity_and_contrast(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the similarity and its contrast-structure term, (B,) each.

    The luminance term is a ratio of intensities, so black must be 0: on values in [-1, 1] it would
    be another one.
    """
    channels = images.shape[1]
    images, targets = (images + 1) / 2, (targets + 1) / 2
    stacked = torch.cat([images, targets, images * images, targets * targets, images * targets], 1)
    window = _gaussian(images.dtype, images.device)
    count = stacked.shape[1]
    for shape in ((1, 1, WINDOW, 1), (1, 1, 1, WINDOW)):
        kernel = window.view(shape).expand(count, -1, -1, -1)
        stacked = F.conv2d(stacked, kernel, groups=count)
    x, y, xx, yy, xy = stacked.split(channels, 1)
    contrast = (2 * (xy - x * y) + CONTRAST) / (xx - x * x + yy - y * y + CONTRAST)
    luminance = (2 * x * y + LUMINANCE) / (x * x + y * y + LUMINANCE)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


@lru_cache
def _gaussian(dtype: torch.dtype, device: torch.device) -> Tensor:
    distance = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-distance.square() / (2 * SIGMA**2))
    return (weights / weights.sum()).to(dtype).to(device)
