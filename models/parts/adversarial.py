"""What adversarial networks share: losses, initial weights, schedules, sizes and pictures."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Clock, Rows, Sign


def accuracy_metrics(phase: str) -> dict[str, str]:
    """For METRICS: what ``accuracies`` gives in ``phase``."""
    return {
        f"{phase}/accuracy_real": "Share of real images, or of patches, that the discriminator "
        "takes for real: 1/2 if it cannot tell, 1 if it always can.",
        f"{phase}/accuracy_fake": "Share of generated ones that it takes for generated. Both at 1 "
        "for long: the generator gets hardly any gradient.",
    }


def discriminator_wins(phase: str) -> Sign:
    """The sign that the discriminator, trained in ``phase``, always tells real from generated."""
    return Sign(
        name="discriminator_wins",
        metrics=(f"{phase}/accuracy_real", f"{phase}/accuracy_fake"),
        least=0.99,
        meaning="the discriminator is nearly always right, so the generator gets hardly any "
        "gradient; a smaller discriminator or more data help",
    )


def accuracies(
    real_logits: Tensor, fake_logits: Tensor, threshold: float = 0.0
) -> dict[str, Tensor]:
    """Shares of the logits, or scores, of real and of generated images that are on their side."""
    return {
        "accuracy_real": (real_logits.detach() > threshold).float().mean(),
        "accuracy_fake": (fake_logits.detach() <= threshold).float().mean(),
    }


def told_apart(
    real_logits: Tensor, fake_logits: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A discriminator's cross-entropies on real and on generated images, and its metrics."""
    real, fake = real_or_fake(real_logits, real=True), real_or_fake(fake_logits, real=False)
    metrics = {"real": real.detach(), "fake": fake.detach()}
    return real, fake, metrics | accuracies(real_logits, fake_logits)


def real_or_fake(logits: Tensor, *, real: bool) -> Tensor:
    """Mean cross-entropy of the logits against "all real" or "all fake", in float32."""
    return F.softplus(-logits.float() if real else logits.float()).mean()


def between(ends_RZ: Tensor, columns: int) -> Tensor:
    """Rows of latents on straight lines: (2R, Z) ends -> (R * columns, Z), row after row.

    Row r goes from end r to end R + r, both among its columns.
    """
    first_RZ, last_RZ = ends_RZ.chunk(2)
    share_C1 = torch.linspace(0, 1, columns, device=ends_RZ.device)[:, None]
    return torch.lerp(first_RZ[:, None], last_RZ[:, None], share_C1).flatten(0, 1)


def in_rows(images_BCHW: Tensor, columns: int) -> Rows:
    """Images, row after row, as a picture."""
    return [list(row) for row in images_BCHW.split(columns)]


def normal_weights(module: nn.Module) -> None:
    """Weights of convolutions from N(0, 0.02), gains of norms from N(1, 0.02), biases 0.

    Radford, Metz and Chintala, "DCGAN", 2016, section 4, https://arxiv.org/abs/1511.06434, and
    most adversarial networks since. For ``Module.apply``.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)


def glorot_weights(module: nn.Module) -> None:
    """Weights by Glorot's uniform rule, biases 0. For ``Module.apply``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def power_of_two(size: int, least: int = 16) -> int:
    """``size``, if networks that halve the image can take it.

    Raises:
        ValueError: it is no power of two, or less than ``least``; the message says what to use.
    """
    if size < least or size & (size - 1):
        below = max(least, 2 ** int(math.log2(size)))
        raise ValueError(f"must be a power of two, at least {least}; use {below} or {2 * below}")
    return size


def linear_decay(start: float) -> Callable[[Clock], float]:
    """Learning-rate factor: 1 until the share ``start`` of the training, then linearly to 0."""
    return lambda clock: min(1.0, (1 - clock.share) / (1 - start))
