"""VAE: a decoder of Gaussian latents and an encoder that approximates their posterior.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2013, https://arxiv.org/abs/1312.6114.
As in the paper: p(z) = N(0, I); q(z|x) = N(mu(x), diag exp(logvar(x))); one sample per image by the
reparameterisation z = mu + exp(logvar / 2) eps (section 2.4); the bound of equation 10,

    log p(x) >= E_q log p(x|z) - KL(q(z|x) || p(z)),
    KL = -1/2 sum_j (1 + logvar_j - mu_j^2 - exp(logvar_j))    (appendix B).

The loss is the negative bound in nats per image: summed over the values of an image and over the
dimensions of the code, then averaged over the batch. Averaging over values would weight the KL
hundreds of times too much.

``importance_weighted_nats`` is -log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) (Burda, Grosse and
Salakhutdinov, "Importance Weighted Autoencoders", 2015, equation 8,
https://arxiv.org/abs/1509.00519), in expectation an upper bound on -log p(x) that falls with k.

``likelihood: bernoulli`` treats each value, scaled to [0, 1], as a probability. On binary images
(data.binarize) its bounds are proper. On grey images the loss is usable but not a likelihood: it is
not the logarithm of any density over grey levels. ``likelihood: gaussian`` is a density over real
values in [-1, 1] with one learned variance. On 8-bit images it is not comparable with the bits of
discrete models.

Departures:
- Adam at 1e-3 and PyTorch's initial weights instead of Adagrad, as in PyTorch's example, which also
  gives the defaults: 784-400-20-400-784 with ReLU. The paper's network for digits is hidden: [500]
  and activation: tanh.
- One learned variance for the Gaussian decoder, where the paper predicts one per value.
- The paper trains on grey levels of MNIST; jobs/vae.yaml binarizes them.
- ``architecture: convolutional`` is our own design; see models/parts/coding.py.

Dimensions: see models/base.py.
"""

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Count, Units, Weight
from orchestrator.models.base import Batch, GenerativeModel, Loss, Phase, Rows, Shared
from orchestrator.models.parts import noise
from orchestrator.models.parts.coding import (
    CodingConfig,
    Widths,
    at_least_float32,
    decoder,
    encoder,
)
from orchestrator.models.parts.sampler import evaluating

INTERPOLATION_STEPS = 8
MANIFOLD_SIZE = 20
"""Rows and columns of the grid over a latent plane, as in the paper's figure 4."""

METRICS = {
    "vae/reconstruction": "-log p(x|z) in nats per image for a sampled code, one term of the loss; "
    "falls. A Bernoulli decoder starts at the number of values times ln 2 (543 at 28 px, grey).",
    "vae/kl": "KL(q(z|x) || p(z)) in nats per image. It rises from near 0 to some tens on digits; "
    "if it stays at 0, the decoder ignores the code (posterior collapse).",
    "vae/elbo": "Evidence lower bound in nats per image, independent of kl_weight; negative, "
    "rises. A value far above that of the validation images indicates overfitting.",
}


class Config(CodingConfig):
    """Hyperparameters of a VAE; defaults as in PyTorch's example."""

    hidden: Widths = (400,)
    """Units of the dense encoder's hidden layers, from image to code; the decoder mirrors them."""
    latent: Units = 20
    """Dimensions of a code; with 2, a grid over the whole latent plane is drawn."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation of hidden layers; tanh in the paper."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Likelihood of a value given the code. bernoulli: binary; gaussian: real, one variance."""
    kl_weight: Weight = 1.0
    """Weight of the KL divergence in the loss; 1 is the bound, others are a beta-VAE."""
    importance_samples: Count = 50
    """Codes per image for importance_weighted_nats in validation; papers use 5000."""


@final
class Model(GenerativeModel):
    """An encoder q(z|x) and a decoder p(x|z)."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        activation = nn.ReLU if config.activation == "relu" else nn.Tanh
        self.encoder = encoder(config, 2 * config.latent, activation)
        self.decoder = decoder(config, activation)
        if config.likelihood == "gaussian":
            self.log_variance = nn.Parameter(torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        """One phase for encoder and decoder."""
        adam = torch.optim.Adam(self.parameters(), self.config.learning_rate, fused=True)
        return (Phase("vae", self, adam, self.loss),)

    def loss(self, batch: Batch, shared: Shared) -> Loss:
        """Equation 10, negated, with one code per image, in nats per image."""
        mu_BZ, logvar_BZ = self.posterior(batch.images)
        z_BZ = _drawn(mu_BZ, logvar_BZ, batch, "posterior")
        reconstruction = -self.log_likelihood(self.decoder(z_BZ), batch.images).mean()
        kl = kl_divergence(mu_BZ, logvar_BZ).mean()
        metrics = {"reconstruction": reconstruction, "kl": kl, "elbo": -(reconstruction + kl)}
        return Loss(
            reconstruction + self.config.kl_weight * kl,
            {name: value.detach() for name, value in metrics.items()},
        )

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x), (B, Z) each, for images in [-1, 1]."""
        mu_BZ, logvar_BZ = at_least_float32(self.encoder(images)).chunk(2, dim=1)
        return mu_BZ, logvar_BZ

    def log_likelihood(self, outputs_BCHW: Tensor, images: Tensor) -> Tensor:
        """Return log p(x|z) in nats, (B,), of images in [-1, 1] given the decoder's outputs.

        Bernoulli: the outputs are logits. Gaussian: a density in [-1, 1].
        """
        outputs = at_least_float32(outputs_BCHW)
        if self.config.likelihood == "bernoulli":
            targets = (images + 1) / 2
            nats = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        else:
            squares = (images - _mean_image(outputs)).square()
            nats = 0.5 * (
                squares * torch.exp(-self.log_variance) + self.log_variance + math.log(2 * math.pi)
            )
        return -nats.flatten(1).sum(1)

    def negative_log_likelihood(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return two bounds in nats, (B,) each, from ``config.importance_samples`` codes.

        One code per image is decoded at a time, so memory does not grow with their number.
        """
        reconstructions, weights = [], []
        with evaluating(self):
            mu_BZ, logvar_BZ = self.posterior(batch.images)
            for number in range(self.config.importance_samples):
                z_BZ = _drawn(mu_BZ, logvar_BZ, batch, f"importance {number}")
                log_px = self.log_likelihood(self.decoder(z_BZ), batch.images)
                prior = -0.5 * z_BZ.square().sum(1)
                errors_BZ = (z_BZ - mu_BZ) * torch.exp(-0.5 * logvar_BZ)
                posterior = -0.5 * (errors_BZ.square() + logvar_BZ).sum(1)
                reconstructions.append(-log_px)
                weights.append(log_px + prior - posterior)
            reconstruction = torch.stack(reconstructions).mean(0)
            return {
                "negative_elbo_nats": reconstruction + kl_divergence(mu_BZ, logvar_BZ),
                "importance_weighted_nats": math.log(len(weights))
                - torch.stack(weights).logsumexp(0),
            }

    def reconstruct(self, images: Tensor) -> Tensor:
        """Decode the posterior mean of each image, (B, C, H, W) in [-1, 1], to the mean image."""
        with evaluating(self):
            return self._decoded(self.posterior(images)[0])

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Return the mean images of codes from N(0, I)."""
        return self.decode(self.latents(seeds), condition)

    def latents(self, seeds: Tensor) -> Tensor:
        """Return codes from N(0, I), (B, Z)."""
        return noise.normal(seeds, "latent", (self.config.latent,))

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return the mean images of codes, (B, Z)."""
        return self._decoded(latents)

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """interpolation: from the reconstruction of one example to that of another in each row.

        manifold, for 2-d codes: codes at the quantiles of N(0, I), as in the paper's figure 4.
        """
        drawn: dict[str, Rows] = {}
        with evaluating(self):
            mu_BZ = self.posterior(examples.images)[0]
            steps = torch.linspace(0, 1, INTERPOLATION_STEPS, device=mu_BZ.device)[:, None]
            pairs = list(zip(mu_BZ[0::2], mu_BZ[1::2], strict=False))
            if pairs:
                drawn["interpolation"] = [
                    list(self._decoded(torch.lerp(first, last, steps))) for first, last in pairs
                ]
            if self.config.latent == 2:
                rows = manifold_codes(MANIFOLD_SIZE).to(mu_BZ.device)
                drawn["manifold"] = [list(self._decoded(row)) for row in rows]
        return drawn

    def _decoded(self, z_BZ: Tensor) -> Tensor:
        return _mean_image(at_least_float32(self.decoder(z_BZ)))


def kl_divergence(mu_BZ: Tensor, logvar_BZ: Tensor) -> Tensor:
    """Return KL(N(mu, diag exp(logvar)) || N(0, I)) in nats, (B,); appendix B."""
    return -0.5 * (1 + logvar_BZ - mu_BZ.square() - logvar_BZ.exp()).sum(1)


def manifold_codes(size: int) -> Tensor:
    """Return codes (size, size, 2) at evenly spaced quantiles of N(0, 1), from 1 / (2 size).

    The first dimension grows to the right, the second upwards.
    """
    quantiles = torch.special.ndtri((torch.arange(size) + 0.5) / size)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right, up], dim=2)


def _drawn(mu_BZ: Tensor, logvar_BZ: Tensor, batch: Batch, name: str) -> Tensor:
    """Draw codes (B, Z) from q(z|x) with per-sample noise: section 2.4."""
    return mu_BZ + torch.exp(0.5 * logvar_BZ) * batch.normal(name, mu_BZ.shape[1])


def _mean_image(outputs: Tensor) -> Tensor:
    """Map the decoder's outputs to images in [-1, 1]; for Bernoulli, the mean."""
    return 2 * torch.sigmoid(outputs) - 1
