"""The Kernel Inception Distance (KID), and a distance of the same form that needs no weights.

The KID is the squared maximum mean discrepancy (MMD) between features of two sets of images under
the kernel k(x, y) = (x.y / D + 1)^3: Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD
GANs", ICLR 2018, https://arxiv.org/abs/1801.01401. ``kid`` is its estimator for two independent
sets, on the features of any extractor, whose name is part of the metric's name.

``mmd2`` of ``random_features`` is not KID: its features come from a small convolutional network
with fixed random weights. They are sensitive to colours, contrast, sharpness and texture, but not
to the content of images. Compare values only within this project, for images of one kind and size.

Dimensions: N, M images, C channels, H, W: height and width, D features of an image, R resamples.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.evaluation.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_weights,
    percentile_interval,
)
from orchestrator.models.parts import noise

WIDTHS = (8, 16, 32, 64)
"""Channels of the network's levels; D is twice their sum, for images of any size."""
IMAGES_PER_PASS = 64
"""Images that the network processes at a time, which bounds the memory of large batches."""
ROWS = 1024
"""Rows of a kernel matrix that are in memory at a time."""


def random_features(images: Tensor) -> Tensor:
    """Compute features (N, D) float32 of images (N, C, H, W) in [-1, 1], on their device.

    Each level is a 3 x 3 convolution with stride 2 and a ReLU; its features are the mean and the
    standard deviation of each channel over height and width. The weights have variance 2 / fan-in
    (He et al. 2015, https://arxiv.org/abs/1502.01852), which keeps the second moment from level to
    level: features have the scale of the pixels and need no normalisation.

    The weights are a pure function of the number of channels: the same in each process, for each
    job and on each device. No torch generator is used.
    """
    weights = [weight.to(images.device) for weight in _weights(images.shape[1])]
    return torch.cat([_features(part.float(), weights) for part in images.split(IMAGES_PER_PASS)])


def _features(images: Tensor, weights: list[Tensor]) -> Tensor:
    found, x = [], images
    for weight in weights:
        x = F.conv2d(x, weight, stride=2, padding=1).relu_()
        flat = x.flatten(2)
        mean = flat.mean(2, keepdim=True)
        # On a CPU, Tensor.std would take as long as everything else together.
        deviation = torch.linalg.vector_norm(flat - mean, dim=2) / flat.shape[2] ** 0.5
        found += [mean.squeeze(2), deviation]
    return torch.cat(found, 1)


@lru_cache
def _weights(channels: int) -> tuple[Tensor, ...]:
    """Draw the convolutions' weights, each (C_out, C_in, 3, 3), for images of ``channels``."""
    weights = []
    for level, (cin, cout) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
        # "random_kid" is a seed key: another text would give other weights.
        normal = noise.normal(torch.arange(cout), f"random_kid {level}", (cin, 3, 3))
        weights.append(normal * (2 / (9 * cin)) ** 0.5)
    return tuple(weights)


def mmd2(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Estimate MMD^2 with KID's kernel, without bias, from pairs of features (N, D): a scalar.

    The mean over all i != j of

        k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j),

    which is the U-statistic of Gretton et al. 2012, "A Kernel Two-Sample Test", equation 4; N must
    be at least 2. The paper of KID also includes i = j in the cross term. That is unbiased only
    for independent sets, but here x_i and y_i belong to the same input, and two equal sets would
    have a negative distance. With this estimator it is exactly 0. For two different sets from the
    same distribution the expected value is 0, so single estimates may be negative.

    Computed in float64, because it is a small difference of large sums.
    """
    x_ND, y_ND = x_ND.double(), y_ND.double()
    h_NN = _kernel(x_ND, x_ND) + _kernel(y_ND, y_ND)
    cross_NN = _kernel(x_ND, y_ND)
    h_NN -= cross_NN + cross_NN.T
    count = len(x_ND)
    return (h_NN.sum() - h_NN.trace()) / (count * (count - 1))


def kid(x_ND: Tensor, y_MD: Tensor) -> float:
    """Estimate the KID of two independent sets without bias: lemma 6 of Gretton et al. 2012.

    The mean of k(x_i, x_j) over all i != j, that of k(y_i, y_j), less twice that of k(x_i, y_j).
    For two sets of one distribution the expected value is 0, so estimates may be negative. It does
    not depend on N and M, unlike the Frechet distance. N and M must be at least 2; float64.
    """
    return float(weighted_kid(x_ND, y_MD, _ones(x_ND), _ones(y_MD)))


def kid_of_blocks(x_ND: Tensor, y_MD: Tensor, block: int = 1000) -> Tensor:
    """Estimate the KID from disjoint blocks of ``block`` images: one value for each, (blocks,).

    Their mean is the block estimate (Zaremba, Gretton and Blaschko 2013,
    https://arxiv.org/abs/1307.1954), for sets too large for all pairs; mean_interval of the values
    is its interval. Images that fill no block are left out; sets are taken in the given order.
    """
    count = min(len(x_ND), len(y_MD)) // block * block
    pairs = zip(x_ND[:count].split(block), y_MD[:count].split(block), strict=True)
    return torch.tensor([kid(x, y) for x, y in pairs], dtype=torch.float64)


def kid_interval(
    x_ND: Tensor, y_MD: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the bootstrap interval of the KID; both sets are resampled."""
    a_RN = bootstrap_weights(len(x_ND), resamples, seed=seed)
    b_RM = bootstrap_weights(len(y_MD), resamples, seed=seed + 1)
    return percentile_interval(weighted_kid(x_ND, y_MD, a_RN, b_RM))


def kid_difference(
    x_ND: Tensor,
    other_ND: Tensor,
    y_MD: Tensor,
    *,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Return KID(x, y) - KID(other, y) and its bootstrap interval: negative if x is nearer to y.

    The reference y is resampled once for both, so what it adds to both cancels. ``paired``: image
    i of x and of other come from the same input or seed, and are drawn together.
    """
    a_RN = bootstrap_weights(len(x_ND), resamples, seed=seed)
    c_RN = a_RN if paired else bootstrap_weights(len(other_ND), resamples, seed=seed + 2)
    b_RM = bootstrap_weights(len(y_MD), resamples, seed=seed + 1)
    drawn = weighted_kid(x_ND, y_MD, a_RN, b_RM) - weighted_kid(other_ND, y_MD, c_RN, b_RM)
    return kid(x_ND, y_MD) - kid(other_ND, y_MD), percentile_interval(drawn)


def weighted_kid(x_ND: Tensor, y_MD: Tensor, a_RN: Tensor, b_RM: Tensor) -> Tensor:
    """Compute the KID of weighted images, (R,): image i of x counts a[i] times.

    Pairs of one and the same image are left out however often it was drawn: the mean of k(x_i,
    x_j) is over i != j with weights a_i a_j. A bootstrap that counts the copies of an image as
    different images takes two halves of one set for different sets.
    """
    a_RN, b_RM = a_RN.to(x_ND.device), b_RM.to(x_ND.device)
    cross_R = _form(a_RN, x_ND, y_MD, b_RM) / (a_RN.sum(1) * b_RM.sum(1))
    return _within(x_ND, a_RN) + _within(y_MD, b_RM) - 2 * cross_R


def _within(x_ND: Tensor, a_RN: Tensor) -> Tensor:
    x_ND = x_ND.double()
    diagonal = (x_ND.square().sum(1) / x_ND.shape[1] + 1) ** 3
    squares = a_RN.square()
    pairs = a_RN.sum(1) ** 2 - squares.sum(1)
    return (_form(a_RN, x_ND, x_ND, a_RN) - squares @ diagonal) / pairs


def _form(a_RN: Tensor, x_ND: Tensor, y_MD: Tensor, b_RM: Tensor) -> Tensor:
    """Compute the sums of a_i k(x_i, y_j) b_j, (R,), in pieces of the kernel matrix."""
    x_ND, y_MD = x_ND.double(), y_MD.double()
    total = torch.zeros(len(a_RN), dtype=torch.float64, device=x_ND.device)
    for a, x in zip(a_RN.split(ROWS, 1), x_ND.split(ROWS), strict=True):
        total += ((a @ _kernel(x, y_MD)) * b_RM).sum(1)
    return total


def _ones(x_ND: Tensor) -> Tensor:
    return torch.ones(1, len(x_ND), dtype=torch.float64)


def _kernel(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    return (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3
