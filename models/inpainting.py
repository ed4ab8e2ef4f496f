"""Context encoder: inpaints the centre of an image from its surroundings.

Pathak, Krahenbuhl, Donahue, Darrell and Efros, "Context Encoders: Feature Learning by Inpainting",
CVPR 2016, https://arxiv.org/abs/1604.07379. As in the paper: the inpainting encoder and decoder
with their bottleneck (section 4, figure 9a), the joint loss (equations 1 to 3), the overlap region;
values that the paper does not give are from the authors' train.lua.

The encoder sees a 128x128 image with its centre masked, and the decoder, built like the generator
of DCGAN (Radford, Metz and Chintala 2016), predicts the central 64x64 pixels. A 4 pixel wide border
of the prediction is known; its squared error weighs 10 times as much, so that the seam fits.

    generator:      0.001 adversarial + 0.999 mean(weight (prediction - centre)^2)
    discriminator:  cross-entropy on real centres plus that on predicted ones

``sample`` masks the centre itself and returns the image with the hole filled; known pixels are
unchanged.

Batch normalisation uses the statistics of one forward pass on one worker, which needs at least two
images; training therefore depends on the number of workers and microbatches. ``sample`` uses
running averages.

Departures:
- For other image sizes, levels are added or removed next to the bottleneck.
- The known border of the centre is taken from the image, not from the prediction.
- In grey images the hole is filled with the mean of the three colours.
- The generator uses the updated discriminator; the authors reuse its outputs from before.
- Only convolutions without batch normalisation have a bias.

Dimensions: see models/base.py. M: height and width of the predicted centre.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import final

import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from orchestrator.bounds import (
    Filters,
    ImageSide,
    LearningRate,
    NonNegativeCount,
    PositiveWeight,
    Units,
)
from orchestrator.models.base import (
    Batch,
    GenerativeModel,
    Loss,
    ModelConfig,
    Phase,
    Rows,
    Shared,
)
from orchestrator.models.parts.adversarial import (
    accuracy_metrics,
    normal_weights,
    power_of_two,
    real_or_fake,
    told_apart,
)

MEAN_COLOUR = (117.0, 104.0, 123.0)
"""Fill colour of the hole, 0 to 255, in the authors' channel order."""

METRICS = {
    "discriminator/real": "Cross-entropy of the discriminator on real centres in nats: ln 2 = 0.69 "
    "if it guesses, near 0 if it is confident.",
    "discriminator/fake": "The same on predicted centres. Near 0 is normal, since blur is easy to "
    "detect and the adversarial loss has little weight.",
    "generator/gan": "-log D of the predicted centres in nats, unweighted: 0.69 if the "
    "discriminator guesses, several nats if it is always right.",
    "generator/l2": "Mean squared error of the predicted centres on training images in [-1, 1], "
    "with the known border weighted by overlap_weight; falls.",
    **accuracy_metrics("discriminator"),
}


class Config(ModelConfig):
    """Hyperparameters of the context encoder; defaults as in the authors' code."""

    image_size: ImageSide = 128
    """Height and width of the images in pixels: a power of two, at least 32."""
    filters: Filters = 64
    """Channels of the outermost layers of both networks; deeper ones have up to 8 times as many."""
    bottleneck: Units = 4000
    """Dimensions of the encoder's output."""
    overlap: NonNegativeCount = 4
    """Width in pixels of the known border of the prediction; the hole is smaller by it."""
    overlap_weight: PositiveWeight = 10.0
    """Weight of the squared error in that border; 1 elsewhere."""
    adversarial_weight: float = Field(default=0.001, ge=0, le=1)
    """Weight of the adversarial loss; the squared error has 1 minus this."""
    learning_rate: LearningRate = 2e-3
    """Adam's learning rate for the generator."""
    discriminator_learning_rate: LearningRate = 2e-4
    """Adam's learning rate for the discriminator."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay rate of the first moment."""

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_the_bottleneck(cls, size: int) -> int:
        return power_of_two(size, 32)

    @field_validator("overlap")
    @classmethod
    def _leaves_a_hole(cls, overlap: int, info: ValidationInfo) -> int:
        size = info.data.get("image_size")
        if size is not None and 4 * overlap >= size:
            raise ValueError(
                f"leaves no hole in images of image_size {size}; use at most {size // 4 - 1}"
            )
        return overlap

    @property
    def fewest_images(self) -> int:
        """2: the bottleneck, of one pixel, is normalised over the batch."""
        return 2

    @property
    def translates(self) -> bool:
        """True: it takes an image and returns it with the hole filled."""
        return True

    @property
    def widths(self) -> list[int]:
        """Channels of the maps of the centre, which is halved down to 4x4 pixels."""
        return [self.filters * min(2**i, 8) for i in range(int(math.log2(self.image_size)) - 3)]


def _generator(config: Config) -> nn.Sequential:
    """Images with a hole to predicted centres: (B, C, H, W) -> (B, C, M, M)."""
    widths, channels = config.widths, config.channels
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for cin, cout in zip([widths[0], *widths], widths, strict=False):
        conv = nn.Conv2d(cin, cout, 4, 2, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(cout), nn.LeakyReLU(0.2)]
    code = nn.Conv2d(widths[-1], config.bottleneck, 4, bias=False)
    layers += [code, nn.BatchNorm2d(config.bottleneck), nn.LeakyReLU(0.2)]
    first = nn.ConvTranspose2d(config.bottleneck, widths[-1], 4, bias=False)
    layers += [first, nn.BatchNorm2d(widths[-1]), nn.ReLU()]
    for cin, cout in zip(widths[:0:-1], widths[-2::-1], strict=True):
        up = nn.ConvTranspose2d(cin, cout, 4, 2, 1, bias=False)
        layers += [up, nn.BatchNorm2d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[0], channels, 4, 2, 1), nn.Tanh())


def _discriminator(config: Config) -> nn.Sequential:
    """Centres to logits: (B, C, M, M) -> (B, 1, 1, 1)."""
    widths = config.widths
    layers: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for cin, cout in pairwise(widths):
        conv = nn.Conv2d(cin, cout, 4, 2, 1, bias=False)
        norm = nn.BatchNorm2d(cout, track_running_stats=False)
        layers += [conv, norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4))


@final
class Model(GenerativeModel):
    """A generator that predicts the centre of an image, and a discriminator of centres."""

    config: Config
    fill: Tensor
    weight: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = _generator(config)
        self.discriminator = _discriminator(config)
        size, overlap = config.image_size, config.overlap
        self.middle = slice(size // 4, size - size // 4)
        self.hole = slice(self.middle.start + overlap, self.middle.stop - overlap)
        grey = sum(MEAN_COLOUR) / 3
        colour = MEAN_COLOUR if config.channels == 3 else (grey,) * config.channels
        fill = torch.tensor(colour)[:, None, None] / 127.5 - 1
        self.register_buffer("fill", fill, persistent=False)
        weight = torch.full((size // 2, size // 2), config.overlap_weight)
        weight[overlap : size // 2 - overlap, overlap : size // 2 - overlap] = 1
        self.register_buffer("weight", weight, persistent=False)
        self.apply(normal_weights)

    def phases(self) -> tuple[Phase, ...]:
        """The discriminator, then the generator."""
        config = self.config

        def phase(
            name: str, module: nn.Module, rate: float, loss: Callable[[Batch, Shared], Loss]
        ) -> Phase:
            betas = (config.beta1, 0.999)
            return Phase(
                name, module, torch.optim.Adam(module.parameters(), rate, betas, fused=True), loss
            )

        slow, fast = config.discriminator_learning_rate, config.learning_rate
        return (
            phase("discriminator", self.discriminator, slow, self.discriminator_loss),
            phase("generator", self.generator, fast, self.generator_loss),
        )

    def with_hole(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) with the hole filled with the mean colour."""
        holed = images.clone()
        holed[:, :, self.hole, self.hole] = self.fill
        return holed

    def shared(self, batch: Batch) -> Shared:
        """Return the predicted centres, (B, C, M, M)."""
        return {"fake": self.generator(self.with_hole(batch.images))}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Equation 2 for real and predicted centres."""
        real, fake, metrics = told_apart(
            self._judge(self._middle(batch.images)), self._judge(shared["fake"].detach())
        )
        return Loss(real + fake, metrics)

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Equation 3, with the non-saturating adversarial term."""
        fake_BCMM = shared["fake"]
        gan = real_or_fake(self._judge(fake_BCMM), real=True)
        errors_BCMM = (fake_BCMM.float() - self._middle(batch.images)).square()
        l2 = (self.weight * errors_BCMM).mean()
        share = self.config.adversarial_weight
        value = share * gan + (1 - share) * l2
        return Loss(value, {"gan": gan.detach(), "l2": l2.detach()})

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Fill the hole of images (B, C, H, W); the seeds make no difference."""
        assert condition is not None
        filled, overlap = condition.clone(), self.config.overlap
        middle_BCMM: Tensor = self.generator(self.with_hole(condition))
        inner = slice(overlap, middle_BCMM.shape[-1] - overlap)
        filled[:, :, self.hole, self.hole] = middle_BCMM[:, :, inner, inner].float()
        return filled

    def inference_module(self) -> nn.Module:
        """The generator."""
        return self.generator

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """holes: images with the hole, filled, and original."""
        images = examples.images
        columns = (self.with_hole(images), self.sample(examples.positions, images), images)
        return {"holes": list(zip(*columns, strict=True))}

    def _middle(self, images: Tensor) -> Tensor:
        return images[:, :, self.middle, self.middle]

    def _judge(self, images_BCMM: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(images_BCMM)
        return logits.float()
