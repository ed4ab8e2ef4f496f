"""A distance between two sets of images: KID's estimator on features of a random network.

The Kernel Inception Distance is the squared maximum mean discrepancy (MMD) between features of
two sets under the kernel k(x, y) = (x.y / D + 1)^3: Binkowski, Sutherland, Arbel and Gretton,
"Demystifying MMD GANs", ICLR 2018, https://arxiv.org/abs/1801.01401. What is here is no KID. KID's
features are those of an Inception network trained on photographs, whose weights have to be
fetched; here a small convolutional network with fixed random weights stands in for it. It tells
colours, contrast, sharpness and texture apart, and nothing of what the pictures show. Its values
compare with those of this project alone, and there for one size and kind of images.

Dimensions: N images, C channels, H, W: height and width, D features of an image.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.models.parts import noise

WIDTHS = (8, 16, 32, 64)
"""Channels of the network's levels; D is twice their sum, whatever the images' size."""
IMAGES_PER_PASS = 64
"""Images that go through the network at a time, so that large batches cost no more memory."""


def random_features(images: Tensor) -> Tensor:
    """Features (N, D) float32 of images (N, C, H, W) in [-1, 1], on their device.

    Each level is a convolution of 3 x 3 with stride 2 and a ReLU; its features are the mean and
    the standard deviation of each channel over height and width. The weights have variance 2 over
    the fan-in (He et al. 2015, https://arxiv.org/abs/1502.01852), which keeps the second moment
    from level to level: features are of the size of the pixels and need no other normalisation.

    The weights are a pure function of the number of channels: the same in each process, for each
    job and on each device, without a draw from torch's generators.
    """
    weights = [weight.to(images.device) for weight in _weights(images.shape[1])]
    return torch.cat([_features(part.float(), weights) for part in images.split(IMAGES_PER_PASS)])


def _features(images: Tensor, weights: list[Tensor]) -> Tensor:
    found, x = [], images
    for weight in weights:
        x = F.conv2d(x, weight, stride=2, padding=1).relu_()
        flat = x.flatten(2)
        mean = flat.mean(2, keepdim=True)
        # Tensor.std would take as long as everything else together on a CPU.
        deviation = torch.linalg.vector_norm(flat - mean, dim=2) / flat.shape[2] ** 0.5
        found += [mean.squeeze(2), deviation]
    return torch.cat(found, 1)


@lru_cache
def _weights(channels: int) -> tuple[Tensor, ...]:
    """The convolutions' weights, each (C_out, C_in, 3, 3), for images of ``channels``."""
    weights = []
    for level, (cin, cout) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
        normal = noise.normal(torch.arange(cout), f"random_kid {level}", (cin, 3, 3))
        weights.append(normal * (2 / (9 * cin)) ** 0.5)
    return tuple(weights)


def mmd2(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Unbiased estimate of MMD^2 with KID's kernel, for pairs of features (N, D), N >= 2: a scalar.

    The mean over all i != j of

        k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j),

    which is the U-statistic of Gretton et al. 2012, "A Kernel Two-Sample Test", equation 4. KID's
    paper takes the cross term over i = j as well. That is unbiased for independent sets only, and
    here x_i and y_i belong to one input: two equal sets would get a negative distance. Here theirs
    is exactly 0. For two different sets of one distribution it is 0 in the mean, so that single
    estimates may be negative.

    Computed in float64, for it is a small difference of large sums.
    """
    x_ND, y_ND = x_ND.double(), y_ND.double()
    h_NN = _kernel(x_ND, x_ND) + _kernel(y_ND, y_ND)
    cross_NN = _kernel(x_ND, y_ND)
    h_NN -= cross_NN + cross_NN.T
    count = len(x_ND)
    return (h_NN.sum() - h_NN.trace()) / (count * (count - 1))


def _kernel(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    return (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3
