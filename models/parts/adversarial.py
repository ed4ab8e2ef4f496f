"""Losses, initialisation, schedules, size checks and pictures shared by adversarial models."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Clock, Rows, Sign


def accuracy_metrics(phase: str) -> dict[str, str]:
    """Return the METRICS entries of ``accuracies`` in ``phase``."""
    return {
        f"{phase}/accuracy_real": "Fraction of real images, or patches, that the discriminator "
        "classifies as real: 1/2 if it guesses, 1 if it is always right.",
        f"{phase}/accuracy_fake": "Fraction of generated ones that it classifies as generated. If "
        "both stay at 1, the generator gets hardly any gradient.",
    }


def discriminator_wins(phase: str) -> Sign:
    """Return the sign of collapse that the discriminator of ``phase`` is always right."""
    return Sign(
        name="discriminator_wins",
        metrics=(f"{phase}/accuracy_real", f"{phase}/accuracy_fake"),
        least=0.99,
        meaning="the discriminator is nearly always right, so the generator gets hardly any "
        "gradient; use a smaller discriminator or more data",
    )


def accuracies(
    real_logits: Tensor, fake_logits: Tensor, threshold: float = 0.0
) -> dict[str, Tensor]:
    """Return the fractions of real and generated logits on their side of ``threshold``."""
    return {
        "accuracy_real": (real_logits.detach() > threshold).float().mean(),
        "accuracy_fake": (fake_logits.detach() <= threshold).float().mean(),
    }


def told_apart(
    real_logits: Tensor, fake_logits: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return a discriminator's losses on real and generated images, and its metrics."""
    real, fake = real_or_fake(real_logits, real=True), real_or_fake(fake_logits, real=False)
    metrics = {"real": real.detach(), "fake": fake.detach()}
    return real, fake, metrics | accuracies(real_logits, fake_logits)


def real_or_fake(logits: Tensor, *, real: bool) -> Tensor:
    """Return the mean cross-entropy against "all real" or "all fake", in float32."""
    return F.softplus(-logits.float() if real else logits.float()).mean()


def between(ends_RZ: Tensor, columns: int) -> Tensor:
    """Interpolate rows of latents: ends (2R, Z) -> (R * columns, Z), row after row.

    Row r goes from end r to end R + r, both included.
    """
    first_RZ, last_RZ = ends_RZ.chunk(2)
    share_C1 = torch.linspace(0, 1, columns, device=ends_RZ.device)[:, None]
    return torch.lerp(first_RZ[:, None], last_RZ[:, None], share_C1).flatten(0, 1)


def in_rows(images_BCHW: Tensor, columns: int) -> Rows:
    """Arrange images in rows of ``columns``."""
    return [list(row) for row in images_BCHW.split(columns)]


def normal_weights(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 0.02), norm gains from N(1, 0.02); set biases to 0.

    Radford, Metz and Chintala, "DCGAN", 2016, section 4, https://arxiv.org/abs/1511.06434, and
    most GANs since. Use with ``Module.apply``.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)


def glorot_weights(module: nn.Module) -> None:
    """Glorot's uniform initialisation, biases 0. Use with ``Module.apply``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def power_of_two(size: int, least: int = 16) -> int:
    """Check that ``size`` is a power of two and at least ``least``, and return it.

    Raises:
        ValueError: it is not; the message suggests valid sizes.
    """
    if size < least or size & (size - 1):
        below = max(least, 2 ** int(math.log2(size)))
        raise ValueError(f"must be a power of two, at least {least}; use {below} or {2 * below}")
    return size


def linear_decay(start: float) -> Callable[[Clock], float]:
    """Return a learning-rate factor of 1 until the fraction ``start``, then linear to 0."""
    return lambda clock: min(1.0, (1 - clock.share) / (1 - start))
