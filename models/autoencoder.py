"""Autoencoder: a network codes an image in few numbers and another one gives it back.

Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 2006,
https://www.cs.toronto.edu/~hinton/absps/science_som.pdf. Followed: the deep dense autoencoder
784-1000-500-250-30 and its mirror image, with linear codes. The loss is the squared error,
||x - decoder(encoder(x))||^2, summed over the values of an image in [-1, 1] (four times the sum
for values in [0, 1]) and averaged over the batch.

Departures:
- Hidden layers are rectified, not logistic, and are trained from torch's initial weights by Adam:
  the paper needs restricted Boltzmann machines to find a start, then conjugate gradients.
- The output is tanh, the logistic unit of the paper rescaled to [-1, 1].
- ``architecture: convolutional`` is a modest design of our own: convolutions of 4x4 and stride 2
  with twice as many channels at each level down to a map of 4 to 7 pixels (where the size of the
  image allows), one dense layer to the code, and the mirror image.
- An autoencoder has no prior, so it makes no new images by itself. ``sample`` decodes codes from a
  Gaussian with a mean and a variance for each dimension, fitted to the codes by maximum
  likelihood while training goes on, as Ghosh et al. do afterwards ("From Variational to
  Deterministic Autoencoders", ICLR 2020, https://arxiv.org/abs/1903.12436). The encoder knows
  nothing of it. A picture of what the decoder makes of the space between the codes, no more. The
  fit is a phase of its own: its gradients are averaged like all others, so that it is the
  same on any number of workers.

Dimensions: see models/base.py.
"""

import math
from typing import final

import torch
from torch import Generator, Tensor, nn

from orchestrator.models.base import Batch, GenerativeModel, Loss, Phase, Shared, evaluating
from orchestrator.models.parts.coding import CodingConfig, at_least_float32, decoder, encoder

CODE_LEARNING_RATE = 0.01
"""Adam's rate for the Gaussian of the codes, which has to follow them through the training.

So does a short memory (beta2): gradients shrink by orders of magnitude as the deviation grows.
"""

METRICS = {
    "autoencoder/mse": "Squared error per value, images in [-1, 1]: the loss divided by the values "
    "of an image; falls. Not below the variance of the data's values, it has learned nothing yet: "
    "that is what the mean image alone reaches.",
}


class Config(CodingConfig):
    """Hyperparameters of an autoencoder; the dense defaults are the paper's."""


class _CodeGaussian(nn.Module):
    """A Gaussian with a mean and a standard deviation for each dimension of a code."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(latent))
        self.log_deviation = nn.Parameter(torch.zeros(latent))

    def nats(self, codes_BZ: Tensor) -> Tensor:
        """Negative log-density of each code: (B,)."""
        errors_BZ = (codes_BZ - self.mean) * torch.exp(-self.log_deviation)
        constant = self.log_deviation + 0.5 * math.log(2 * math.pi)
        return (0.5 * errors_BZ.square() + constant).sum(1)


@final
class Model(GenerativeModel):
    """An encoder and a decoder, and a Gaussian around the codes to draw from."""

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
        """The Gaussian of the codes, then encoder and decoder, whose codes it has just met."""
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
        """The codes of the batch: (B, Z)."""
        return {"codes": self.autoencoder["encoder"](batch.images)}

    def codes_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Negative log-density of the codes under their Gaussian, nats per image."""
        return Loss(self.codes.nats(at_least_float32(shared["codes"].detach())).mean(), {})

    def reconstruction_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Squared error summed over each image; ``mse`` is its mean over the values."""
        images = self.autoencoder["decoder"](shared["codes"])
        errors = (at_least_float32(images) - batch.images).square().flatten(1)
        return Loss(errors.sum(1).mean(), {"mse": errors.detach().mean()})

    def reconstruct(self, images: Tensor) -> Tensor:
        """The decoder's image of each image's code; both (B, C, H, W) in [-1, 1]."""
        with evaluating(self):
            reconstructions: Tensor = self.autoencoder["decoder"](
                self.autoencoder["encoder"](images)
            )
        return at_least_float32(reconstructions)

    def sample(
        self, num_images: int, generator: Generator, condition: Tensor | None = None
    ) -> Tensor:
        """Decoded codes from the Gaussian around the codes met in training: not a model of images.

        (num_images, C, H, W) in [-1, 1].
        """
        shape, device = (num_images, self.config.latent), generator.device
        noise_BZ = torch.randn(shape, generator=generator, device=device)
        with evaluating(self):
            codes_BZ = self.codes.mean + self.codes.log_deviation.exp() * noise_BZ
            images: Tensor = self.autoencoder["decoder"](codes_BZ)
        return images.float()
