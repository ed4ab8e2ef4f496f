"""Precision, recall, density and coverage: which images lie near which others.

The neighbourhood of an image is the ball around its features that reaches to its k-th nearest
neighbour in its own set.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

K = 5
"""Nearest neighbour that a neighbourhood reaches to, as in the paper on density and coverage."""
ROUNDING = 1e-12
"""Squared distance, relative to the squared lengths, below which features are equal."""


@dataclass(frozen=True)
class Neighbourhoods:
    """The four shares; all of them are better if higher.

    Sources: Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991 (precision, recall); Naeem
    et al. 2020, https://arxiv.org/abs/2002.09797 (density, coverage).
    """

    precision: float
    """Share of generated images within the neighbourhood of any real image, 0 to 1."""
    recall: float
    """Share of real images within the neighbourhood of any generated image, 0 to 1."""
    density: float
    """Mean number of real images in whose neighbourhood a generated one is, over k; may exceed 1,
    and is 1 on average for two sets of one distribution."""
    coverage: float
    """Share of real images with a generated image within their neighbourhood, 0 to 1."""


NAMES = tuple(field.name for field in fields(Neighbourhoods))


@dataclass(frozen=True)
class Distances:
    """Distances between two sets of features, so that subsets need not compute them again."""

    real: Tensor
    """(N, N) between real images."""
    generated: Tensor
    """(M, M) between generated images."""
    cross: Tensor
    """(N, M) from real to generated images."""

    @classmethod
    def of(cls, real_ND: Tensor, generated_MD: Tensor) -> "Distances":
        """Compute all distances in float64."""
        return cls(
            pairwise_distances(real_ND, real_ND),
            pairwise_distances(generated_MD, generated_MD),
            pairwise_distances(real_ND, generated_MD),
        )

    def subset(self, real: Tensor, generated: Tensor) -> "Distances":
        """Return the distances between the images with the given indices."""
        return Distances(
            self.real[real][:, real],
            self.generated[generated][:, generated],
            self.cross[real][:, generated],
        )


def pairwise_distances(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Compute Euclidean distances, float64 (N, M); exactly 0 for equal features.

    From |x|^2 + |y|^2 - 2 x.y, which is ten times as fast as from differences. What remains of
    equal features by rounding is set to 0.
    """
    x_ND, y_MD = x_ND.double(), y_MD.double()
    scale_NM = x_ND.square().sum(1, keepdim=True) + y_MD.square().sum(1)
    squares_NM = torch.addmm(scale_NM, x_ND, y_MD.T, alpha=-2)
    return squares_NM.masked_fill_(squares_NM < ROUNDING * scale_NM, 0).sqrt_()


def neighbourhoods(distances: Distances, k: int = K) -> Neighbourhoods:
    """Compute precision, recall, density and coverage; both sets need more than ``k`` images.

    An image on the edge of a neighbourhood is outside. All four depend on N and M; never read the
    precision alone: it is high for images without variety.
    """
    within_real = distances.cross < _radii(distances.real, k)[:, None]
    within_generated = distances.cross < _radii(distances.generated, k)
    return Neighbourhoods(
        precision=_share(within_real.any(0)),
        recall=_share(within_generated.any(1)),
        density=_share(within_real) * len(within_real) / k,
        coverage=_share(within_real.any(1)),
    )


def _radii(distances: Tensor, k: int) -> Tensor:
    """Distance of each image to its k-th nearest neighbour; the nearest of all is itself."""
    return distances.kthvalue(k + 1, dim=1).values


def _share(inside: Tensor) -> float:
    return float(inside.double().mean())
