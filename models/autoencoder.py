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
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias, final

import torch
from pydantic import BeforeValidator, PositiveFloat, PositiveInt, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Generator, Tensor, nn

from models.base import Batch, GenerativeModel, Loss, ModelConfig, Phase, Shared, evaluating

SMALLEST_MAP = 4
"""Height and width in pixels that a convolutional encoder does not go below."""
CODE_LEARNING_RATE = 0.01
"""Adam's rate for the Gaussian of the codes, which has to follow them through the training.

So does a short memory (beta2): gradients shrink by orders of magnitude as the deviation grows.
"""

Widths: TypeAlias = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
]
"""Units of layers in turn; YAML has lists alone, which strict validation takes for no tuple."""

METRICS = {
    "autoencoder/mse": "Squared error per value, images in [-1, 1]: the loss divided by the values "
    "of an image; falls. Not below the variance of the data's values, it has learned nothing yet: "
    "that is what the mean image alone reaches.",
}


class CodingConfig(ModelConfig):
    """Hyperparameters of an encoder and a decoder, for every model that has such a pair."""

    image_size: PositiveInt = 28
    """Height and width of the images in pixels."""
    channels: PositiveInt = 1
    """Channels of an image: 3 for colour, 1 for grey."""
    architecture: Literal["dense", "convolutional"] = "dense"
    """dense: fully connected layers of `hidden` units; convolutional: stride-2 convolutions."""
    hidden: Widths = (1000, 500, 250)
    """Units of the dense encoder's hidden layers, from the image inwards; the decoder mirrors."""
    filters: PositiveInt = 32
    """Channels of the outermost convolution; deeper ones have up to 8 times as many."""
    latent: PositiveInt = 30
    """Numbers in a code."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's learning rate."""

    @field_validator("architecture")
    @classmethod
    def _halves_twice(cls, architecture: str, info: ValidationInfo) -> str:
        size = info.data.get("image_size")
        if architecture == "convolutional" and size is not None and (size % 4 or size < 8):
            near = max(8, 4 * round(size / 4))
            raise ValueError(
                f"convolutional halves the image twice or more, which image_size {size} does not "
                f"allow; use dense, or image_size {near}"
            )
        return architecture


class Config(CodingConfig):
    """Hyperparameters of an autoencoder; the dense defaults are the paper's."""


def map_sizes(image_size: int) -> list[int]:
    """Height and width of each map of a convolutional encoder, from the image inwards."""
    sizes = [image_size]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= SMALLEST_MAP:
        sizes.append(sizes[-1] // 2)
    return sizes


def encoder(config: CodingConfig, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """(B, C, H, W) -> (B, outputs), linear at the end."""
    if config.architecture == "dense":
        widths = (config.channels * config.image_size**2, *config.hidden)
        hidden = _dense(widths, activation)
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], outputs))
    widths, smallest = _filters(config), map_sizes(config.image_size)[-1]
    layers: list[nn.Module] = []
    for cin, cout in pairwise(widths):
        layers += [nn.Conv2d(cin, cout, 4, 2, 1), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * smallest**2, outputs))


def decoder(config: CodingConfig, activation: type[nn.Module]) -> nn.Sequential:
    """(B, Z) -> (B, C, H, W), the encoder's mirror image, linear at the end."""
    shape = (config.channels, config.image_size, config.image_size)
    if config.architecture == "dense":
        widths = (config.latent, *reversed(config.hidden))
        last = nn.Linear(widths[-1], math.prod(shape))
        return nn.Sequential(*_dense(widths, activation), last, nn.Unflatten(1, shape))
    filters, smallest = _filters(config)[::-1], map_sizes(config.image_size)[-1]
    layers: list[nn.Module] = [
        nn.Linear(config.latent, filters[0] * smallest**2),
        nn.Unflatten(1, (filters[0], smallest, smallest)),
    ]
    for cin, cout in pairwise(filters):
        layers += [activation(), nn.ConvTranspose2d(cin, cout, 4, 2, 1)]
    return nn.Sequential(*layers)


def _dense(widths: tuple[int, ...], activation: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return layers


def _filters(config: CodingConfig) -> tuple[int, ...]:
    """Channels of each map, from the image inwards."""
    levels = len(map_sizes(config.image_size)) - 1
    return (config.channels, *(config.filters * min(2**level, 8) for level in range(levels)))


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


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
