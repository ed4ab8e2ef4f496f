"""pix2pix: image-to-image translation with a conditional GAN.

Isola, Zhu, Zhou and Efros, "Image-to-Image Translation with Conditional Adversarial Networks",
CVPR 2017, https://arxiv.org/abs/1611.07004. As in the paper: the objective (equations 1 to 4 with
the non-saturating generator loss of section 3.3), the U-Net and the encoder-decoder generator, the
patch discriminators with their receptive fields, Adam and the initialisation (section 6).

Test time (section 3.3): the generator runs as in training with one image per batch. Dropout, the
only source of noise, stays on, with masks that belong to an image's seed. Batch normalisation uses
the statistics of each image, so there are no running statistics. With ``norm: batch`` a generator
that trained on several images at once therefore normalises otherwise than in training; use
``norm: instance`` for these, or one image per worker or microbatch as in the paper.

Several workers: ``norm: batch`` uses the statistics of one worker's share of a batch, so 4 images
on 1 worker and 4 images on 4 workers give different models. ``norm: instance`` does not depend on
the number of workers; use it whenever a batch has more than one image.

Departures:
- No normalisation at the 1x1 bottleneck (the authors' erratum: with one image per batch it would
  zero the activations).
- With ``norm: batch`` only the generator's last and the discriminator's first and last convolution
  have a bias, since the normalisation has its own. With ``norm: instance``, which has none, all
  convolutions have a bias.
- Networks for smaller images omit the innermost levels: log2(image_size) levels, at most 8.
- Dropout is on the three decoder levels next to the bottleneck, as in the paper's CD512-CD1024-
  CD1024; the authors' PyTorch port has it one level further out.
- The discriminator is updated first, and the generator uses the updated one. The discriminator's
  loss is halved, as in the paper's text.

Dimensions: see models/base.py. A: input images, Y: target images, P: height and width of the
discriminator's output, one logit per patch.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import NOT_BOOLEAN, Filters, ImageSide, LearningRate, Weight
from orchestrator.models.base import (
    Batch,
    GenerativeModel,
    Input,
    Loss,
    ModelConfig,
    Phase,
    Shared,
    constant,
)
from orchestrator.models.parts import noise
from orchestrator.models.parts.adversarial import (
    accuracy_metrics,
    discriminator_wins,
    linear_decay,
    normal_weights,
    power_of_two,
    real_or_fake,
    told_apart,
)
from orchestrator.models.parts.patch import (
    STRIDED_LAYERS,
    norm_layer,
    patch_discriminator,
    patch_map_size,
)

METRICS = {
    "discriminator/real": "Cross-entropy of the discriminator on real pairs in nats: ln 2 = 0.69 "
    "if it guesses, near 0 if it is confident. Good values are below 0.69 and not 0 for long.",
    "discriminator/fake": "The same on translated pairs. If both stay near 0, the generator learns "
    "only from l1; if both stay at 0.69, it gets no signal from the discriminator.",
    "generator/gan": "-log D of the translations in nats: 0.69 if the discriminator guesses, "
    "several nats if it is always right. It need not fall.",
    "generator/l1": "Mean absolute difference from the target on training images in [-1, 1], "
    "unweighted; falls. A value far below validation/l1 indicates overfitting.",
    **accuracy_metrics("discriminator"),
}


class Config(ModelConfig):
    """Hyperparameters of pix2pix; defaults as in the paper."""

    image_size: ImageSide = 256
    """Height and width of the images in pixels: a power of two, at least 16."""
    generator: Literal["unet", "encoder_decoder"] = "unet"
    """unet: encoder and decoder with skip connections; encoder_decoder: without them."""
    filters: Filters = 64
    """Channels of the generator's outermost level; deeper levels have up to 8 times as many."""
    receptive_field: Annotated[Literal[1, 16, 34, 70, 142, 286], NOT_BOOLEAN] = 70
    """Receptive field of one discriminator output, in pixels."""
    discriminator_filters: Filters = 64
    """Channels of the discriminator's first layer; deeper layers have up to 8 times as many."""
    norm: Literal["batch", "instance"] = "batch"
    """batch: as in the paper, for one image per worker; instance: for any batch size."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Dropout probability in the decoder, in training and at test time."""
    l1_weight: Weight = 100.0
    """Weight of the L1 loss (lambda in equation 4)."""
    gan_weight: Weight = 1.0
    """Weight of the adversarial loss; 0 gives the L1 baseline."""
    learning_rate: LearningRate = 2e-4
    """Adam's learning rate, for both networks."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay rate of the first moment."""
    decay_from: float | None = Field(default=None, ge=0, lt=1)
    """Fraction of the run after which the learning rate decays linearly to 0; null: constant."""

    @property
    def takes(self) -> frozenset[Input]:
        """Pairs of images."""
        return frozenset({"pairs"})

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_one_pixel(cls, size: int) -> int:
        return power_of_two(size)

    @field_validator("receptive_field")
    @classmethod
    def _has_a_map(cls, field: int, info: ValidationInfo) -> int:
        size = info.data.get("image_size")
        if size is not None and patch_map_size(size, field) < 1:
            fitting = [f for f in (1, *STRIDED_LAYERS) if patch_map_size(size, f) >= 1]
            raise ValueError(f"is too large for image_size {size}; use one of {fitting}")
        return field


class _Generator(nn.Module):
    """U-Net, or encoder and decoder without skip connections: A_BCHW -> images_BCHW.

    Dropout is always on. With ``seeds`` (B,), its masks belong to them; without, they are torch's.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels = min(8, int(math.log2(config.image_size)))
        widths = [config.filters * min(2**level, 8) for level in range(levels)]
        bias = config.norm == "instance"
        self.skips, self.dropout = config.generator == "unet", config.dropout
        self.noisy = min(3, levels - 1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            cin = widths[level - 1] if level else config.channels
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers.append(nn.Conv2d(cin, width, 4, 2, 1, bias=bias))
            if 0 < level < levels - 1:
                layers.append(norm_layer(config.norm, width))
            self.down.append(nn.Sequential(*layers))
        for level in reversed(range(levels)):
            innermost = level == levels - 1
            cin = widths[level] * (2 if self.skips and not innermost else 1)
            cout = widths[level - 1] if level else config.channels
            layers = [nn.ReLU()]
            layers.append(nn.ConvTranspose2d(cin, cout, 4, 2, 1, bias=bias or level == 0))
            layers.append(norm_layer(config.norm, cout) if level else nn.Tanh())
            self.up.append(nn.Sequential(*layers))

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        maps = []
        for block in self.down:
            x = block(x)
            maps.append(x)
        for depth, block in enumerate(self.up):
            skip = maps[-1 - depth]
            x = block(torch.cat([x, skip], 1) if self.skips and depth else x)
            if depth < self.noisy and self.dropout:
                x = self._drop(x, seeds, depth)
        return x

    def _drop(self, x: Tensor, seeds: Tensor | None, depth: int) -> Tensor:
        if seeds is None:
            return F.dropout(x, self.dropout)
        return noise.dropout(x, self.dropout, seeds, f"dropout {depth}")


@final
class Model(GenerativeModel):
    """A generator that translates images and a discriminator of (input, image) pairs."""

    config: Config
    signs_of_collapse = (discriminator_wins("discriminator"),)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = _Generator(config)
        self.discriminator = patch_discriminator(
            2 * config.channels, config.discriminator_filters, config.receptive_field, config.norm
        )
        self.apply(normal_weights)

    def phases(self) -> tuple[Phase, ...]:
        """The discriminator, then the generator."""
        config = self.config
        factor = constant if config.decay_from is None else linear_decay(config.decay_from)

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            adam = torch.optim.Adam(
                module.parameters(), config.learning_rate, (config.beta1, 0.999), fused=True
            )
            return Phase(name, module, adam, loss, learning_rate_factor=factor)

        return (
            phase("discriminator", self.discriminator, self.discriminator_loss),
            phase("generator", self.generator, self.generator_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """Return the translated batch."""
        return {"fake": self.generator(_condition(batch.condition))}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Equation 1, negated and halved."""
        a_BCHW = _condition(batch.condition)
        real, fake, metrics = told_apart(
            self._judge(a_BCHW, batch.images), self._judge(a_BCHW, shared["fake"].detach())
        )
        return Loss((real + fake) / 2, metrics)

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Equation 4 with the non-saturating adversarial term."""
        fake_BCHW = shared["fake"]
        gan = real_or_fake(self._judge(_condition(batch.condition), fake_BCHW), real=True)
        l1 = F.l1_loss(fake_BCHW.float(), batch.images)
        value = self.config.gan_weight * gan + self.config.l1_weight * l1
        return Loss(value, {"gan": gan.detach(), "l1": l1.detach()})

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Translate images (B, C, H, W); the seeds choose the dropout."""
        images: Tensor = self.generator(_condition(condition), seeds)
        return images

    def inference_module(self) -> nn.Module:
        """The generator."""
        return self.generator

    def _judge(self, a_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        logits_B1PP: Tensor = self.discriminator(torch.cat([a_BCHW, y_BCHW], 1))
        return logits_B1PP


def _condition(condition: Tensor | None) -> Tensor:
    if condition is None:
        raise ValueError("pix2pix needs pairs, but the data set has no input images")
    return condition
