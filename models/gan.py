"""GAN: the original generative adversarial network, with fully connected layers.

Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville and Bengio, "Generative
Adversarial Nets", NeurIPS 2014, https://arxiv.org/abs/1406.2661. As in the paper: the value
function (equation 1) and the generator's non-saturating loss (section 3). As in the authors' code
(goodfeli/adversarial): the MNIST networks, their initialisation, dropout, SGD with a falling
learning rate and a rising momentum. The CIFAR-10 networks are ``generator_units: 8000,
second_activation: sigmoid, output: linear, latent_distribution: normal, maxout_units: 1600,
learning_rate: 0.025``.

The discriminator's dropout stays on while the generator trains.

Departures:
- The discriminator is updated first, then the generator, with the same noise; the authors' code
  computes both gradients before either update.
- The momentum rises at every step, in the authors' code once per epoch. ``momentum_steps`` equals
  their 250 epochs of 500 batches (50,000 images, 100 per batch).
- Torch's SGD multiplies the accumulated gradient by the current learning rate; the authors' code
  accumulates the scaled steps. At a decay of 4e-6 per step the difference is negligible.
- The output bias starts at the mean of a thousand images, smoothed with half a white and half a
  black image; the authors use the whole training set.
- ``output: linear`` uses images in [-1, 1] without contrast normalisation, and samples are clamped
  to that range; the authors normalise the contrast of CIFAR-10.

Dimensions: see models/base.py. D: values of an image (C * H * W), U: maxout units, P: pieces.
"""

from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from orchestrator.bounds import (
    ImageChannels,
    ImageSide,
    LearningRate,
    NonNegativeSteps,
    Units,
)
from orchestrator.models.base import (
    Batch,
    Clock,
    GenerativeModel,
    Loss,
    ModelConfig,
    Phase,
    Rows,
    Shared,
)
from orchestrator.models.parts import noise
from orchestrator.models.parts.adversarial import (
    accuracy_metrics,
    between,
    discriminator_wins,
    in_rows,
    real_or_fake,
    told_apart,
)
from orchestrator.models.parts.sampler import evaluating

GENERATOR_RANGE, DISCRIMINATOR_RANGE = 0.05, 0.005
"""Weights are initialised uniformly in [-range, range], biases with 0."""

METRICS = {
    "discriminator/real": "Cross-entropy of the discriminator on real images in nats: ln 2 = 0.69 "
    "if it guesses, near 0 if it is confident. Dropout keeps it above 0.",
    "discriminator/fake": "The same on generated images. If both stay near 0, the discriminator "
    "has won; if both stay at 0.69, they are in balance or the discriminator does not learn.",
    **accuracy_metrics("discriminator"),
}


class Config(ModelConfig):
    """Hyperparameters of the GAN; defaults as in the paper for MNIST."""

    image_size: ImageSide = 28
    """Height and width of the images in pixels."""
    channels: ImageChannels = 1
    """Channels of an image: 1 for grey, 3 for colour."""
    latent_size: Units = 100
    """Dimensions of the latent."""
    latent_distribution: Literal["uniform", "normal"] = "uniform"
    """Distribution of the latent; both have mean 0 and variance 1."""
    generator_units: Units = 1200
    """Units in each of the generator's two hidden layers."""
    second_activation: Literal["relu", "sigmoid"] = "relu"
    """Activation of the generator's second hidden layer; the first uses ReLU."""
    output: Literal["sigmoid", "linear"] = "sigmoid"
    """sigmoid: pixels in [0, 1] for both networks; linear: unbounded outputs for [-1, 1]."""
    maxout_units: Units = 240
    """Units in each of the discriminator's two hidden layers."""
    maxout_pieces: Units = 5
    """Linear pieces per maxout unit."""
    input_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout probability of the discriminator's input."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Dropout probability of the discriminator's hidden layers."""
    loss: Literal["non_saturating", "minimax"] = "non_saturating"
    """The generator's loss: -log D(G(z)), or log(1 - D(G(z))) for minimax."""
    learning_rate: LearningRate = 0.1
    """Initial learning rate of SGD, for both networks."""
    learning_rate_divisor: float = Field(default=1.000004, ge=1, le=2)
    """The learning rate is divided by this after each step; 1 keeps it constant."""
    minimum_learning_rate: LearningRate = 1e-6
    """Lower bound of the learning rate."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Initial momentum of SGD."""
    final_momentum: float = Field(default=0.7, ge=0, lt=1)
    """Momentum of SGD after ``momentum_steps``."""
    momentum_steps: NonNegativeSteps = 125_000
    """Steps over which the momentum changes linearly; 0: ``final_momentum`` from the start."""

    @field_validator("minimum_learning_rate")
    @classmethod
    def _is_below_the_first(cls, minimum: float, info: ValidationInfo) -> float:
        first = info.data.get("learning_rate")
        if first is not None and minimum > first:
            raise ValueError(f"must not exceed learning_rate; use at most {first}")
        return minimum


class _Generator(nn.Module):
    """z_BZ -> images_BCHW, in [-1, 1] with sigmoid output, unbounded with linear output."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        units, size = config.generator_units, config.image_size
        self.hidden = nn.Sequential(
            nn.Linear(config.latent_size, units),
            nn.ReLU(),
            nn.Linear(units, units),
            nn.ReLU() if config.second_activation == "relu" else nn.Sigmoid(),
        )
        self.output = nn.Linear(units, config.channels * size * size)
        self.shape = (config.channels, size, size)
        self.sigmoid = config.output == "sigmoid"

    def forward(self, z_BZ: Tensor) -> Tensor:
        x_BD = self.output(self.hidden(z_BZ))
        if self.sigmoid:
            x_BD = 2 * x_BD.sigmoid() - 1
        images_BCHW: Tensor = x_BD.unflatten(1, self.shape)
        return images_BCHW


class _Maxout(nn.Module):
    """Maximum over P linear functions for each of U units: (B, inputs) -> (B, U).

    Goodfellow et al., "Maxout Networks", ICML 2013, http://arxiv.org/abs/1302.4389.
    """

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units * pieces)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        pieces_BUP: Tensor = self.linear(x).unflatten(1, (self.units, -1))
        return pieces_BUP.amax(2)


class _Discriminator(nn.Module):
    """images_BCHW -> logits (B, 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        units, pieces = config.maxout_units, config.maxout_pieces
        values = config.channels * config.image_size**2
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(config.input_dropout),
            _Maxout(values, units, pieces),
            nn.Dropout(config.dropout),
            _Maxout(units, units, pieces),
            nn.Dropout(config.dropout),
            nn.Linear(units, 1),
        )
        self.to_unit_range = config.output == "sigmoid"

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_B1: Tensor = self.layers(
            (images_BCHW + 1) / 2 if self.to_unit_range else images_BCHW
        )
        return logits_B1


def _initialise(network: nn.Module, bound: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


@final
class Model(GenerativeModel):
    """A generator and a discriminator."""

    config: Config
    images_to_prepare = 1000
    signs_of_collapse = (discriminator_wins("discriminator"),)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = _Generator(config)
        self.discriminator = _Discriminator(config)
        _initialise(self.generator, GENERATOR_RANGE)
        _initialise(self.discriminator, DISCRIMINATOR_RANGE)

    def phases(self) -> tuple[Phase, ...]:
        """The discriminator, then the generator."""
        config = self.config

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            sgd = torch.optim.SGD(
                module.parameters(), config.learning_rate, config.momentum, fused=True
            )
            return Phase(
                name,
                module,
                sgd,
                loss,
                learning_rate_factor=self._learning_rate_factor,
                momentum=self._momentum,
            )

        return (
            phase("discriminator", self.discriminator, self.discriminator_loss),
            phase("generator", self.generator, self.generator_loss),
        )

    def prepare(self, examples: Batch) -> None:
        """Initialise the output bias so that G(0) is about the mean of ``examples``."""
        if self.config.output == "linear":
            return
        pixels_BD = (examples.images.flatten(1) + 1) / 2
        mean_D = (pixels_BD.sum(0) + 0.5) / (len(pixels_BD) + 1)
        with torch.no_grad():
            self.generator.output.bias.copy_(mean_D.logit())

    def shared(self, batch: Batch) -> Shared:
        """Return generated images."""
        size = self.config.latent_size
        if self.config.latent_distribution == "normal":
            z_BZ = batch.normal("latent", size)
        else:
            z_BZ = _unit_variance(batch.uniform("latent", size))
        return {"fake": self.generator(z_BZ.to(batch.images))}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Equation 1, negated and halved."""
        real, fake, metrics = told_apart(
            self.discriminator(batch.images), self.discriminator(shared["fake"].detach())
        )
        return Loss((real + fake) / 2, metrics)

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """-log D(G(z)), or log(1 - D(G(z))) from equation 1."""
        logits_B1 = self.discriminator(shared["fake"])
        if self.config.loss == "minimax":
            return Loss(-real_or_fake(logits_B1, real=False), {})
        return Loss(real_or_fake(logits_B1, real=True), {})

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z) for random z."""
        return self.decode(self.latents(seeds), None)

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """interpolation: 8 images between two z in each row."""
        seeds = torch.arange(16, device=examples.images.device)
        with evaluating(self.generator):
            images = self.decode(between(self.latents(seeds), 8), None)
        return {"interpolation": in_rows(images, 8)}

    def inference_module(self) -> nn.Module:
        """The generator."""
        return self.generator

    def latents(self, seeds: Tensor) -> Tensor:
        """Return z, (B, Z)."""
        size = (self.config.latent_size,)
        if self.config.latent_distribution == "normal":
            return noise.normal(seeds, "latent", size)
        return _unit_variance(noise.uniform(seeds, "latent", size))

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z) for z, (B, Z)."""
        images: Tensor = self.generator(latents)
        return images.float().clamp(-1, 1)

    def _learning_rate_factor(self, clock: Clock) -> float:
        config = self.config
        lowest = config.minimum_learning_rate / config.learning_rate
        return max(lowest, config.learning_rate_divisor**-clock.step)

    def _momentum(self, clock: Clock) -> float:
        config = self.config
        share = min(1.0, clock.step / config.momentum_steps) if config.momentum_steps else 1.0
        return config.momentum + share * (config.final_momentum - config.momentum)


def _unit_variance(uniform: Tensor) -> Tensor:
    """Map uniform numbers in [0, 1] to [-sqrt(3), sqrt(3)], with mean 0 and variance 1."""
    return (2 * uniform - 1) * 3**0.5
