"""DCGAN: a generative adversarial network of strided convolutions.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", ICLR 2016, https://arxiv.org/abs/1511.06434. As in the paper:
the guidelines of section 3, Adam and the initialisation of section 4.

Two networks are known as DCGAN; ``architecture`` selects one:

- ports: Chintala's dcgan.torch and PyTorch's examples, with 4x4 kernels, 64 filters and a normally
  distributed latent.
- original: Radford's Theano code for faces, with 5x5 kernels, 128 filters, a latent uniform in
  [-1, 1], a dense stem normalised per unit, and ``weight_decay: 1e-5``.

Losses: the discriminator's loss is the sum, not the mean, of its cross-entropies on real and
generated images, computed in two forward passes so that batch normalisation never mixes them. The
generator's loss is non-saturating and uses the updated discriminator (dcgan.torch uses its outputs
from before the update).

Classes, as in Radford's code for MNIST: the one-hot class is concatenated to the input of every
layer of both networks as constant maps.

In training, batch normalisation uses the statistics of one worker's share of a batch. Sampling uses
the generator's running statistics, so an image does not depend on the others in its batch.

Departures:
- Running statistics when sampling; both reference codes use those of the batch.
- One layer more or less for each doubling or halving of the image size, with the width doubled each
  time. At 64 pixels the networks are those of the reference codes. Radford's MNIST networks for 28
  pixels differ: use 32.
- Batch normalisation adds 1e-5 to the variance, as in the ports; Radford's code adds 1e-8.

Dimensions: see models/base.py.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Classes, Filters, ImageSide, LearningRate, Units, Weight
from orchestrator.models.base import (
    Batch,
    GenerativeModel,
    Input,
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
    normal_weights,
    power_of_two,
    real_or_fake,
    told_apart,
)
from orchestrator.models.parts.sampler import evaluating

METRICS = {
    "discriminator/real": "Cross-entropy of the discriminator on real images in nats: ln 2 = 0.69 "
    "if it guesses, near 0 if it is confident. The loss is the sum of this and fake.",
    "discriminator/fake": "The same on generated images. If both stay near 0, the discriminator "
    "has won and samples stop improving; short peaks are normal.",
    **accuracy_metrics("discriminator"),
}


class Config(ModelConfig):
    """Hyperparameters of DCGAN; defaults as in the paper, with the networks of the ports."""

    image_size: ImageSide = 64
    """Height and width of the images in pixels: a power of two, at least 16."""
    architecture: Literal["ports", "original"] = "ports"
    """ports: 4x4 kernels; original: 5x5 kernels and a stem normalised per unit."""
    filters: Filters = 64
    """Channels next to the image, doubled at each layer: 64 in the ports, 128 in the original."""
    latent_size: Units = 100
    """Dimensions of the latent."""
    latent_distribution: Literal["uniform", "normal"] = "uniform"
    """uniform in [-1, 1], as in the original; or standard normal, as in the ports."""
    classes: Classes = 0
    """Number of classes to condition on; 0: unconditional, labels are not needed."""
    learning_rate: LearningRate = 2e-4
    """Adam's learning rate, for both networks."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay rate of the first moment."""
    weight_decay: Weight = 0.0
    """L2 penalty of both networks, added to the gradient as this times the parameter."""

    @property
    def fewest_images(self) -> int:
        """2 for the original, whose stem is normalised over the batch per unit."""
        return 2 if self.architecture == "original" else 1

    @property
    def takes(self) -> frozenset[Input]:
        """Labels, if class-conditional."""
        return frozenset({"labels"}) if self.classes else frozenset()

    @property
    def num_classes(self) -> int:
        """Number of classes that ``sample`` can be conditioned on."""
        return self.classes

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_four_pixels(cls, size: int) -> int:
        return power_of_two(size)


class _Network(nn.Module):
    """Layers conditioned on the class: (B, C, H, W), (B, K) one-hot -> (B, C', H', W')."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BCHW: Tensor, classes_BK: Tensor | None) -> Tensor:
        for layer in self.layers:
            if classes_BK is not None:
                maps = classes_BK.to(x_BCHW)[:, :, None, None]
                x_BCHW = torch.cat([x_BCHW, maps.expand(-1, -1, *x_BCHW.shape[2:])], 1)
            x_BCHW = layer(x_BCHW)
        return x_BCHW


def _widths(config: Config) -> list[int]:
    """Return the channels of the maps, from the largest map to the 4x4 one."""
    return [config.filters << level for level in range(int(math.log2(config.image_size)) - 2)]


KERNEL_AND_PADDING = {"ports": (4, 1), "original": (5, 2)}
"""With these a convolution of stride 2 exactly halves or doubles a map."""


def _generator(config: Config) -> _Network:
    """z_BZ11 -> images_BCHW in [-1, 1]."""
    *others, innermost = _widths(config)
    kernel, padding = KERNEL_AND_PADDING[config.architecture]
    # On one pixel a 4x4 transposed convolution is a dense layer to a 4x4 map.
    stem: list[nn.Module] = [
        nn.ConvTranspose2d(config.latent_size + config.classes, innermost, 4, bias=False)
    ]
    if config.architecture == "original":
        units = innermost * 16
        stem += [nn.Flatten(), nn.BatchNorm1d(units), nn.Unflatten(1, (innermost, 4, 4))]
    else:
        stem.append(nn.BatchNorm2d(innermost))
    layers: list[nn.Module] = [nn.Sequential(*stem, nn.ReLU())]
    cin = innermost
    for cout in [*reversed(others), config.channels]:
        double = nn.ConvTranspose2d(
            cin + config.classes, cout, kernel, 2, padding, kernel % 2, bias=False
        )
        layers.append(nn.Sequential(double, nn.BatchNorm2d(cout), nn.ReLU()))
        cin = cout
    layers[-1] = nn.Sequential(double, nn.Tanh())
    return _Network(layers)


def _discriminator(config: Config) -> _Network:
    """images_BCHW -> logits (B, 1, 1, 1)."""
    kernel, padding = KERNEL_AND_PADDING[config.architecture]
    layers: list[nn.Module] = []
    cin = config.channels
    for cout in _widths(config):
        halve = nn.Conv2d(cin + config.classes, cout, kernel, 2, padding, bias=False)
        norm = [nn.BatchNorm2d(cout)] if layers else []
        layers.append(nn.Sequential(halve, *norm, nn.LeakyReLU(0.2)))
        cin = cout
    return _Network([*layers, nn.Conv2d(cin + config.classes, 1, 4, bias=False)])


@final
class Model(GenerativeModel):
    """A generator and a discriminator."""

    config: Config
    signs_of_collapse = (discriminator_wins("discriminator"),)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = _generator(config)
        self.discriminator = _discriminator(config)
        self.apply(normal_weights)

    def phases(self) -> tuple[Phase, ...]:
        """The discriminator, then the generator."""
        config = self.config

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            adam = torch.optim.Adam(
                module.parameters(),
                config.learning_rate,
                (config.beta1, 0.999),
                weight_decay=config.weight_decay,
                fused=True,
            )
            return Phase(name, module, adam, loss)

        return (
            phase("discriminator", self.discriminator, self.discriminator_loss),
            phase("generator", self.generator, self.generator_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """Return generated images of the batch's classes."""
        size = self.config.latent_size
        if self.config.latent_distribution == "normal":
            z_BZ = batch.normal("latent", size)
        else:
            z_BZ = 2 * batch.uniform("latent", size) - 1
        z_BZ11 = z_BZ.to(batch.images)[:, :, None, None]
        return {"fake": self.generator(z_BZ11, self._one_hot(batch.labels))}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Cross-entropies on real and on generated images, added."""
        classes_BK = self._one_hot(batch.labels)
        real, fake, metrics = told_apart(
            self.discriminator(batch.images, classes_BK),
            self.discriminator(shared["fake"].detach(), classes_BK),
        )
        return Loss(real + fake, metrics)

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """-log D(G(z))."""
        logits = self.discriminator(shared["fake"], self._one_hot(batch.labels))
        return Loss(real_or_fake(logits, real=True), {})

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z) of the classes ``condition``, if the model has classes."""
        return self.decode(self.latents(seeds), condition)

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """interpolation: 8 images between two z in each row, all of one class."""
        z_BZ = between(self.latents(torch.arange(16, device=examples.images.device)), 8)
        labels_B = None
        if self.config.classes:
            rows = torch.arange(8, device=z_BZ.device) % self.config.classes
            labels_B = rows.repeat_interleave(8)
        with evaluating(self.generator):
            return {"interpolation": in_rows(self.decode(z_BZ, labels_B), 8)}

    def inference_module(self) -> nn.Module:
        """The generator."""
        return self.generator

    def latents(self, seeds: Tensor) -> Tensor:
        """Return z, (B, Z)."""
        size = (self.config.latent_size,)
        if self.config.latent_distribution == "normal":
            return noise.normal(seeds, "latent", size)
        return 2 * noise.uniform(seeds, "latent", size) - 1

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z) for z, (B, Z), and classes, (B,)."""
        images: Tensor = self.generator(latents[:, :, None, None], self._one_hot(condition))
        return images.float()

    def _one_hot(self, labels_B: Tensor | None) -> Tensor | None:
        if not self.config.classes:
            return None
        if labels_B is None:
            raise ValueError("dcgan with classes needs labels, but the data set has none")
        return F.one_hot(labels_B, self.config.classes)
