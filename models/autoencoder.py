"""Autoencoder: an encoder compresses an image to a short code, a decoder reconstructs it.

Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 2006,
https://www.cs.toronto.edu/~hinton/absps/science_som.pdf. As in the paper: the deep dense
autoencoder 784-1000-500-250-30 and its mirror image, with linear codes. The loss is the squared
error ||x - decoder(encoder(x))||^2, summed over the values of an image in [-1, 1] (four times the
sum for values in [0, 1]) and averaged over the batch.

Departures:
- ReLU instead of logistic hidden units, torch's initial weights and Adam. The paper pretrains with
  restricted Boltzmann machines and then uses conjugate gradients.
- The output is tanh, the paper's logistic unit rescaled to [-1, 1].
- ``architecture: convolutional`` is a small design of our own: 4x4 convolutions of stride 2 that
  double the channels at each level, down to a map of 4 to 7 pixels where the image size allows,
  one dense layer to the code, and the mirror image.
- An autoencoder has no prior and is not a generative model. ``sample`` decodes codes from a
  diagonal Gaussian, which is fitted to the codes by maximum likelihood during training; Ghosh et
  al. fit it afterwards ("From Variational to Deterministic Autoencoders", ICLR 2020,
  https://arxiv.org/abs/1903.12436). It does not affect the encoder. The samples only show how the
  decoder interpolates between codes. The fit is a separate phase, so that its gradients are
  averaged over workers like all others and the result does not depend on their number.

Dimensions: see models/base.py.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from orchestrator.models.base import Batch, GenerativeModel, Loss, Phase, Shared
from orchestrator.models.parts import noise
from orchestrator.models.parts.coding import CodingConfig, at_least_float32, decoder, encoder
from orchestrator.models.parts.sampler import evaluating

CODE_LEARNING_RATE = 0.01
"""Adam's learning rate for the Gaussian, high enough to track the codes during training.

beta2 is low for the same reason: gradients shrink by orders of magnitude as the deviation grows.
"""

METRICS = {
    "autoencoder/mse": "Mean squared error per value, images in [-1, 1]: the loss divided by the "
    "number of values; falls. As long as it is not below the variance of the data, the model is no "
    "better than the mean image.",
}


class Config(CodingConfig):
    """Hyperparameters of an autoencoder; defaults as in the paper."""


class _CodeGaussian(nn.Module):
    """Diagonal Gaussian over codes."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(latent))
        self.log_deviation = nn.Parameter(torch.zeros(latent))

    def nats(self, codes_BZ: Tensor) -> Tensor:
        """Return the negative log-density of each code, (B,)."""
        errors_BZ = (codes_BZ - self.mean) * torch.exp(-self.log_deviation)
        constant = self.log_deviation + 0.5 * math.log(2 * math.pi)
        return (0.5 * errors_BZ.square() + constant).sum(1)


@final
class Model(GenerativeModel):
    """An encoder, a decoder, and a Gaussian over the codes to sample from."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = nn.ModuleDict(
            {
                "encoder": encoder(config, config.latent, nn.ReLU),
                "decoder": decoder(config, nn.ReLU).append(nn.Tanh()),
            }
        )
        self.codes = _CodeGaussian(config.latent)

    def phases(self) -> tuple[Phase, ...]:
        """The Gaussian of the codes, then encoder and decoder."""
        codes = torch.optim.Adam(
            self.codes.parameters(), CODE_LEARNING_RATE, (0.9, 0.95), fused=True
        )
        adam = torch.optim.Adam(
            self.autoencoder.parameters(), self.config.learning_rate, fused=True
        )
        return (
            Phase("codes", self.codes, codes, self.codes_loss),
            Phase("autoencoder", self.autoencoder, adam, self.reconstruction_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """Return the codes of the batch, (B, Z)."""
        return {"codes": self.autoencoder["encoder"](batch.images)}

    def codes_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Negative log-density of the codes under their Gaussian, nats per image."""
        return Loss(self.codes.nats(at_least_float32(shared["codes"].detach())).mean(), {})

    def reconstruction_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Squared error summed over an image; ``mse`` is its mean over values."""
        images = self.autoencoder["decoder"](shared["codes"])
        errors = (at_least_float32(images) - batch.images).square().flatten(1)
        return Loss(errors.sum(1).mean(), {"mse": errors.detach().mean()})

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images, (B, C, H, W) in [-1, 1]."""
        with evaluating(self):
            reconstructions: Tensor = self.autoencoder["decoder"](
                self.autoencoder["encoder"](images)
            )
        return at_least_float32(reconstructions)

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Decode codes drawn from the fitted Gaussian."""
        return self.decode(self.latents(seeds), condition)

    def latents(self, seeds: Tensor) -> Tensor:
        """Return codes from the fitted Gaussian, (B, Z)."""
        noise_BZ = noise.normal(seeds, "latent", (self.config.latent,))
        return self.codes.mean + self.codes.log_deviation.exp() * noise_BZ

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Decode codes, (B, Z)."""
        images: Tensor = self.autoencoder["decoder"](latents)
        return images
