"""Distance between two sets of images: the estimator of KID on features of a random network.

The Kernel Inception Distance (KID) is the squared maximum mean discrepancy (MMD) between features
of two sets under the kernel k(x, y) = (x.y / D + 1)^3: Binkowski, Sutherland, Arbel and Gretton,
"Demystifying MMD GANs", ICLR 2018, https://arxiv.org/abs/1801.01401.

This distance is not KID. KID uses the features of an Inception network trained on photographs,
whose weights would have to be downloaded. Here they come from a small convolutional network with
fixed random weights. They are sensitive to colours, contrast, sharpness and texture, but not to
the content of images. Compare values only within this project, for images of one kind and size.

Dimensions: N images, C channels, H, W: height and width, D features of an image.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.models.parts import noise

WIDTHS = (8, 16, 32, 64)
"""Channels of the network's levels; D is twice their sum, for images of any size."""
IMAGES_PER_PASS = 64
"""Images that the network processes at a time, which bounds the memory of large batches."""


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


def _kernel(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    return (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3
