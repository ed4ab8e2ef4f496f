"""Discretised mixtures of logistics: the distribution of a pixel in PixelCNN++.

Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications", ICLR 2017, section 2.1 and 2.2,
https://arxiv.org/abs/1701.05517. A colour is a draw from a mixture of logistic distributions,
rounded to the nearest of ``levels`` values in [-1, 1]; the first and the last value include the
tails. All colours of a pixel share the component; given it, the mean of a colour is linear in the
previous colours (equation 3).

Departure: the probability of an interval is computed in a closed form that is exact at any scale;
the authors' code approximates small ones by the density at the midpoint.

Shape suffixes besides those of models/base.py:

    M: components     P: parameters of one pixel, M (1 + 2 C + C (C - 1) / 2)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.models.parts.autoregressive import from_levels, to_levels

LEAST_LOG_SCALE = -7.0
"""Lower bound, as in the authors' code; smaller scales lead to infinite likelihoods."""


def numbers_for_pixel(channels: int, mixtures: int) -> int:
    """Return P: per component a logit, C means, C log-scales and C (C - 1) / 2 coefficients."""
    return mixtures * (1 + 2 * channels + _num_pairs(channels))


def log_likelihood(outputs: Tensor, images: Tensor, levels: int) -> Tensor:
    """Return nats, (B,), of images (B, C, H, W) in [-1, 1] under outputs (B, P, H, W)."""
    values = to_levels(images, levels)
    colours = from_levels(values, levels)
    logits, means, log_scales, coefficients = _split(outputs, images.shape[1])
    nats_BMHW = logits.log_softmax(1)
    for c in range(images.shape[1]):
        mean = _mean(c, means, coefficients, colours[:, :, None])
        nats_BMHW = nats_BMHW + discretised_logistic(
            values[:, c, None], mean, log_scales[:, c], levels
        )
    return nats_BMHW.logsumexp(1).flatten(1).sum(1)


def discretised_logistic(values: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Return the log-probability of integers 0 .. levels - 1 under a discretised logistic.

    Uses s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) for the sigmoid s, which avoids cancellation.
    """
    half = 1 / (levels - 1)
    precision = (-log_scale).exp()
    distance = from_levels(values, levels) - mean
    below_top = F.logsigmoid(precision * (distance + half))
    above_bottom = F.logsigmoid(-precision * (distance - half))
    both = below_top + above_bottom + (-torch.expm1(-2 * half * precision)).log()
    inner = torch.where(values == 0, below_top, both)
    return torch.where(values == levels - 1, above_bottom, inner)


def pick(outputs: Tensor, uniforms: Tensor, pixel: Tensor, levels: int) -> Tensor:
    """Draw all colours of one pixel.

    Args:
        outputs: (B, P).
        uniforms: (B, 1 + C) in (0, 1): one for the component, one per colour.
        pixel: (B, C); only its shape is used.

    Returns:
        Colours (B, C), quantised in [-1, 1].
    """
    logits, *parameters = _split(outputs, pixel.shape[1])
    component = (uniforms[:, :1] >= logits.softmax(1).cumsum(1)[:, :-1]).sum(1)
    chosen = torch.arange(len(pixel), device=pixel.device), slice(None), component
    means, log_scales, coefficients = (numbers[chosen] for numbers in parameters)
    drawn = torch.zeros_like(pixel)
    for c in range(pixel.shape[1]):
        noise = log_scales[:, c].exp() * torch.logit(uniforms[:, 1 + c])
        colour = (_mean(c, means, coefficients, drawn) + noise).clamp(-1, 1)
        drawn[:, c] = from_levels(to_levels(colour, levels), levels)
    return drawn


def _num_pairs(channels: int) -> int:
    return channels * (channels - 1) // 2


def _split(outputs: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split into logits (B, M, ...), means, log-scales (B, C, M, ...) and coefficients."""
    pairs = _num_pairs(channels)
    numbers = outputs.unflatten(1, (1 + 2 * channels + pairs, -1))
    logits, means, log_scales, coefficients = numbers.split((1, channels, channels, pairs), 1)
    return logits[:, 0], means, log_scales.clamp(min=LEAST_LOG_SCALE), coefficients.tanh()


def _mean(c: int, means: Tensor, coefficients: Tensor, colours: Tensor) -> Tensor:
    """Return the mean of colour ``c`` given the previous colours (equation 3)."""
    first, mean = _num_pairs(c), means[:, c]
    for k in range(c):
        mean = mean + coefficients[:, first + k] * colours[:, k]
    return mean
