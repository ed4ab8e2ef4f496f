"""VAE: a decoder of Gaussian codes, and an encoder that says which codes an image may have.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2013, https://arxiv.org/abs/1312.6114.
Followed: p(z) = N(0, I); q(z|x) = N(mu(x), diag exp(logvar(x))); one sample per image by the
reparameterisation z = mu + exp(logvar / 2) eps (section 2.4); the bound of equation 10,

    log p(x) >= E_q log p(x|z) - KL(q(z|x) || p(z)),
    KL = -1/2 sum_j (1 + logvar_j - mu_j^2 - exp(logvar_j))    (appendix B).

The loss is the negative of it, in nats per image: sums over the values of an image and over the
code, then the mean over the batch. Means over the values would weigh the KL hundreds of times.

``importance_weighted_nats`` is -log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) (Burda, Grosse and
Salakhutdinov, "Importance Weighted Autoencoders", 2015, equation 8,
https://arxiv.org/abs/1509.00519): in expectation an upper bound on -log p(x) that falls with k.

``likelihood: bernoulli`` takes a value's place in [0, 1] as the share of a black or white
draw. On binary images (data.binarize) its bounds are proper. On grey ones the loss works as well
but is no likelihood: there is no density over grey levels that it is the logarithm of.
``likelihood: gaussian`` is a density over real values in [-1, 1], with one variance for all values,
learned. On images of 8 bits a density is not comparable with bits of discrete models.

Departures:
- Adam at 1e-3 and PyTorch's initial weights, as in PyTorch's own example, instead of Adagrad. The
  defaults are that example's: 784-400-20-400-784, rectified. The paper's network for digits is
  hidden: [500] and activation: tanh.
- The paper's Gaussian decoder gives a variance for each value; ours learns one for all.
- The paper trains on grey levels of MNIST; jobs/vae.yaml makes them binary.
- ``architecture: convolutional`` is our own design; see models/parts/coding.py.

Dimensions: see models/base.py.
"""

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Batch, GenerativeModel, Loss, Phase, Rows, Shared, evaluating
from orchestrator.models.parts.coding import (
    CodingConfig,
    Widths,
    at_least_float32,
    decoder,
    encoder,
)

INTERPOLATION_STEPS = 8
MANIFOLD_SIZE = 20
"""Rows and columns of the picture of a latent plane, as in the paper's figure 4."""

METRICS = {
    "vae/reconstruction": "-log p(x|z) in nats per image, with the code drawn: one part of the "
    "loss; falls. At the start of a Bernoulli decoder it is the number of values times ln 2 (543 "
    "at 28 px, grey).",
    "vae/kl": "KL(q(z|x) || p(z)) in nats per image: what codes say about images. It rises from "
    "near 0 to some tens on digits; if it stays at 0, the decoder ignores the codes (collapse).",
    "vae/elbo": "The evidence lower bound in nats per image, negative, whatever kl_weight is; "
    "rises. Far above that of the validation images it tells of overfitting.",
}


class Config(CodingConfig):
    """Hyperparameters of a VAE; the defaults are PyTorch's example's."""

    hidden: Widths = (400,)
    """Units of the dense encoder's hidden layers, from the image inwards; the decoder mirrors."""
    latent: PositiveInt = 20
    """Numbers in a code; with 2 there is a picture of the whole plane of codes."""
    activation: Literal["relu", "tanh"] = "relu"
    """After hidden layers; tanh is the paper's."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Of a value given the code. bernoulli: black or white; gaussian: real, of one variance."""
    kl_weight: NonNegativeFloat = 1.0
    """Weight of the KL divergence in the loss; 1 is the bound, other weights are a beta-VAE."""
    importance_samples: PositiveInt = 50
    """Codes per image for importance_weighted_nats in validation; papers report 5000."""


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
        """One: encoder and decoder together."""
        adam = torch.optim.Adam(self.parameters(), self.config.learning_rate, fused=True)
        return (Phase("vae", self, adam, self.loss),)

    def loss(self, batch: Batch, shared: Shared) -> Loss:
        """The negative of equation 10 with one code per image, in nats per image."""
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
        """Mean and log variance of q(z|x) for (B, C, H, W) images in [-1, 1]: (B, Z) each."""
        mu_BZ, logvar_BZ = at_least_float32(self.encoder(images)).chunk(2, dim=1)
        return mu_BZ, logvar_BZ

    def log_likelihood(self, outputs_BCHW: Tensor, images: Tensor) -> Tensor:
        """log p(x|z) (B,) of images in [-1, 1], in nats, where ``outputs_BCHW`` is the decoder's.

        Bernoulli: outputs are logits. Gaussian: a density in [-1, 1].
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
        """Two bounds in nats, (B,) each, both from ``config.importance_samples`` codes.

        Codes are decoded one for each image at a time: thousands of them need no more memory.
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
        """The mean image of the mean code of each image; both (B, C, H, W) in [-1, 1]."""
        with evaluating(self):
            return self._decoded(self.posterior(images)[0])

    def sample(
        self, num_images: int, generator: Generator, condition: Tensor | None = None
    ) -> Tensor:
        """The mean images of codes drawn from N(0, I): (num_images, C, H, W) in [-1, 1]."""
        shape, device = (num_images, self.config.latent), generator.device
        z_BZ = torch.randn(shape, generator=generator, device=device)
        with evaluating(self):
            return self._decoded(z_BZ)

    def pictures(self, examples: Batch, generator: Generator) -> Mapping[str, Rows]:
        """Images between pairs of examples, and of the whole plane where a code has 2 numbers.

        interpolation: a row for each pair, from the reconstruction of one to that of the other.
        manifold: codes at the quantiles of N(0, I), as in the paper's figure 4.
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
    """KL(N(mu, diag exp(logvar)) || N(0, I)) in nats: (B,); appendix B."""
    return -0.5 * (1 + logvar_BZ - mu_BZ.square() - logvar_BZ.exp()).sum(1)


def manifold_codes(size: int) -> Tensor:
    """Codes (size, size, 2) at evenly spaced quantiles of N(0, 1), from 1 / 2 size on.

    The first number grows to the right, the second one upwards.
    """
    quantiles = torch.special.ndtri((torch.arange(size) + 0.5) / size)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right, up], dim=2)


def _drawn(mu_BZ: Tensor, logvar_BZ: Tensor, batch: Batch, name: str) -> Tensor:
    """Codes (B, Z) from q(z|x): section 2.4 with the noise that belongs to each sample."""
    return mu_BZ + torch.exp(0.5 * logvar_BZ) * batch.normal(name, mu_BZ.shape[1])


def _mean_image(outputs: Tensor) -> Tensor:
    """The decoder's outputs as images in [-1, 1]; for the Bernoulli, its mean."""
    return 2 * torch.sigmoid(outputs) - 1
