"""Features drawn from known distributions."""

import torch
from torch import Generator, Tensor

from orchestrator.evaluation.feature_set import FeatureSet


def correlated(count: int, size: int, seed: int, *, shift: float = 0, scale: float = 1) -> Tensor:
    """Gaussian features (count, size) with most of their variance in 8 directions."""
    noise = Generator().manual_seed(seed)
    directions = torch.randn(8, size, generator=Generator().manual_seed(1)) / 8**0.5
    common = scale * torch.randn(count, 8, generator=noise) @ directions
    return common + 0.3 * torch.randn(count, size, generator=noise) + shift


def features(
    values: Tensor, what: str = "generated images", *, labels: Tensor | None = None
) -> FeatureSet:
    return FeatureSet(what, values, "lite0", labels=labels)
