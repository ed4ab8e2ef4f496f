"""Text to image: GAN-CLS, a GAN that also learns whether an image is what a text says.

Reed, Akata, Yan, Logeswaran, Schiele and Lee, "Generative Adversarial Text to Image Synthesis",
ICML 2016, https://arxiv.org/abs/1605.05396. Followed: both networks (section 4.1), the matching
discriminator (algorithm 1) and interpolated texts (equation 5); what the paper leaves open is as
in its code. For an image x, its text t, the text w of another image and y = G(z, t),

    D:  CE(D(x, t), 1) + (CE(D(x, w), 0) + CE(D(y, t), 0)) / 2
    G:  CE(D(y, t), 1) + interpolation_weight CE(D(G(z', (t + w) / 2), (t + w) / 2), 1)

with CE the cross-entropy against "all 1" or "all 0". w is the text of the image before it in the
part of the batch that is computed at once: its distribution is the same, but which text it is
depends on workers and microbatches, as batch normalisation does. Texts may agree by chance.

Samples use running statistics: an image does not depend on those beside it.

Departures:
- The paper's text encoder, a character-level network of convolutions and a recurrent one, is
  trained beforehand to embed texts and images together (Reed, Akata, Lee and Schiele, "Learning
  Deep Representations of Fine-Grained Visual Descriptions", CVPR 2016,
  https://arxiv.org/abs/1605.05395). Ours is a smaller one of convolutions and a mean over time,
  over bytes. It is trained along with the discriminator, whose task, to tell an image's text from
  another's, is of the same kind; the generator takes its codes as they are.
- A wrong pair is a real image with another image's text (algorithm 1), where the authors' code
  takes a text with another image. Only the generator learns from interpolated texts.
- Larger and smaller images than 64 px have more and fewer layers, doubling the width each.

Dimensions: see models/base.py. T: bytes of a caption, E: numbers in a text's code, F: channels.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import (
    Batch,
    Clock,
    GenerativeModel,
    Input,
    Loss,
    ModelConfig,
    Phase,
    Rows,
    Shared,
    evaluating,
)
from orchestrator.models.parts.adversarial import (
    accuracies,
    accuracy_metrics,
    between,
    discriminator_wins,
    in_rows,
    normal_weights,
    power_of_two,
    real_or_fake,
)

BYTE_SIZE, POOLED = 64, 3
"""Numbers that stand for a byte; places of a text that become one between convolutions."""

METRICS = {
    "discriminator/right": "Cross-entropy in nats of real images with their text; near 0: D wins.",
    "discriminator/wrong": "The same of real images with another's text; 0.69: it cannot read.",
    "discriminator/fake": "The same of generated images; near 0: the discriminator wins.",
    **accuracy_metrics("discriminator"),
    "generator/match": "Nats by which images fail to pass for their text; 0.69 is balance.",
    "generator/interpolated": "The same for texts between two; only with interpolation_weight.",
}


class Config(ModelConfig):
    """Hyperparameters of GAN-CLS; the defaults are the paper's and its code's."""

    image_size: PositiveInt = 64
    """Height and width of the images in pixels: a power of two, at least 16."""
    filters: int = Field(default=128, ge=4)
    """Channels of the generator's map next to the image, doubled at each layer away from it."""
    discriminator_filters: int = Field(default=64, ge=4)
    """Channels of the discriminator's first layer, doubled at each further one."""
    latent_size: PositiveInt = 100
    """Normal numbers that an image is made of besides its text."""
    text_size: PositiveInt = 1024
    """Numbers in the code of a text."""
    text_filters: PositiveInt = 256
    """Channels of the text encoder's convolutions."""
    projection: PositiveInt = 256
    """Numbers that each network makes of a text's code."""
    interpolation_weight: NonNegativeFloat = 0.0
    """Weight of the generator's loss on texts halfway between two; 1 is the paper's GAN-INT-CLS."""
    learning_rate: PositiveFloat = 2e-4
    """Adam's learning rate at the start, for all networks."""
    halvings: int = Field(default=5, ge=0)
    """How often the learning rate is halved, at equal distances; 5: every 100 of 600 epochs."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay of the gradient's mean."""

    @property
    def takes(self) -> frozenset[Input]:
        """Captions."""
        return frozenset({"captions"})

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_four_pixels(cls, size: int) -> int:
        return power_of_two(size)


class _TextEncoder(nn.Module):
    """captions_BT as in ``Batch.captions`` -> codes_BE; how far zeros fill it up is no matter."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.text_filters
        self.bytes = nn.Embedding(256, BYTE_SIZE, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(cin, width, 5, padding=2) for cin in (BYTE_SIZE, width, width)
        )
        self.code = nn.Linear(width, config.text_size)

    def forward(self, captions_BT: Tensor) -> Tensor:
        x_BFT = self.bytes(captions_BT.long()).transpose(1, 2)
        here_B1T = (captions_BT != 0).to(x_BFT)[:, None]
        for layer, convolution in enumerate(self.convolutions):
            if layer:
                # Both are at least 0, and 0 after the text: a place beyond it changes no maximum.
                x_BFT = F.max_pool1d(x_BFT, POOLED, ceil_mode=True)
                here_B1T = F.max_pool1d(here_B1T, POOLED, ceil_mode=True)
            x_BFT = F.relu(convolution(x_BFT)) * here_B1T
        mean_BF = x_BFT.sum(2) / here_B1T.sum(2).clamp(min=1)
        codes_BE: Tensor = self.code(mean_BF)
        return codes_BE


class _Residual(nn.Module):
    """x plus a bottleneck of a quarter of its channels, then ``activation``: (B, F, H, W)."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        narrow, layers = width // 4, list[nn.Module]()
        for cin, cout, kernel in ((width, narrow, 1), (narrow, narrow, 3), (narrow, width, 3)):
            layers.append(nn.Conv2d(cin, cout, kernel, padding="same", bias=False))
            layers += [nn.BatchNorm2d(cout), activation]
        self.bottleneck = nn.Sequential(*layers[:-1])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x + self.bottleneck(x))
        return y


def _projection(config: Config) -> nn.Sequential:
    """codes_BE -> what a network takes from them, (B, projection)."""
    return nn.Sequential(nn.Linear(config.text_size, config.projection), nn.LeakyReLU(0.2))


def _levels(config: Config) -> int:
    """How often the image halves down to 4 pixels."""
    return int(math.log2(config.image_size)) - 2


class _Generator(nn.Module):
    """z_BZ, codes_BE -> images_BCHW in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.projection = _projection(config)
        widths = [config.filters << level for level in reversed(range(_levels(config)))]
        inputs = config.latent_size + config.projection
        # On one pixel a 4x4 transposed convolution is a dense layer onto a 4x4 map.
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(inputs, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            _Residual(widths[0], nn.ReLU()),
        ]
        for level, (cin, cout) in enumerate(pairwise(widths)):
            layers.append(nn.ConvTranspose2d(cin, cout, 4, 2, 1, bias=False))
            layers.append(nn.BatchNorm2d(cout))
            layers.append(nn.ReLU() if level else _Residual(cout, nn.ReLU()))
        layers.append(nn.ConvTranspose2d(widths[-1], config.channels, 4, 2, 1, bias=False))
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z_BZ: Tensor, codes_BE: Tensor) -> Tensor:
        x = torch.cat([z_BZ, self.projection(codes_BE).to(z_BZ)], 1)
        images_BCHW: Tensor = self.layers(x[:, :, None, None])
        return images_BCHW


class _Discriminator(nn.Module):
    """images_BCHW, codes_BE -> logits (B, 1, 1, 1), by way of maps (B, F, 4, 4) of the images."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.discriminator_filters << level for level in range(_levels(config))]
        layers: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 4, 2, 1, bias=False)]
        for cin, cout in pairwise(widths):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(cin, cout, 4, 2, 1, bias=False)]
            layers.append(nn.BatchNorm2d(cout))
        self.image = nn.Sequential(*layers, _Residual(widths[-1], nn.LeakyReLU(0.2)))
        self.projection = _projection(config)
        self.judge = nn.Sequential(
            nn.Conv2d(widths[-1] + config.projection, widths[-1], 1, bias=False),
            nn.BatchNorm2d(widths[-1]),
            nn.LeakyReLU(0.2),
            nn.Conv2d(widths[-1], 1, 4, bias=False),
        )

    def match(self, maps: Tensor, codes_BE: Tensor) -> Tensor:
        text = self.projection(codes_BE).to(maps)[:, :, None, None].expand(-1, -1, 4, 4)
        logits: Tensor = self.judge(torch.cat([maps, text], 1))
        return logits

    def forward(self, images_BCHW: Tensor, codes_BE: Tensor) -> Tensor:
        return self.match(self.image(images_BCHW), codes_BE)


def halving(times: int) -> Callable[[Clock], float]:
    """Learning-rate factor: 1 at first, then halved ``times`` times at equal distances."""
    return lambda clock: 0.5 ** float(int(clock.share * (times + 1)))


@final
class Model(GenerativeModel):
    """A text encoder, a generator of what a text says, and a discriminator of image and text."""

    config: Config
    signs_of_collapse = (discriminator_wins("discriminator"),)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.text = _TextEncoder(config)
        self.generator = _Generator(config)
        self.discriminator = _Discriminator(config)
        self.apply(normal_weights)

    def phases(self) -> tuple[Phase, ...]:
        """The step of discriminator and text encoder, then the generator's."""
        config = self.config

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            adam = torch.optim.Adam(
                module.parameters(), config.learning_rate, (config.beta1, 0.999), fused=True
            )
            return Phase(name, module, adam, loss, learning_rate_factor=halving(config.halvings))

        judges = nn.ModuleDict({"text": self.text, "discriminator": self.discriminator})
        return (
            phase("discriminator", judges, self.discriminator_loss),
            phase("generator", self.generator, self.generator_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """The codes of the batch's texts, (B, E), and the images made of them.

        Images leave no gradient in the text encoder.
        """
        codes_BE = self.text(_captions(batch.captions))
        z_BZ = batch.normal("latent", self.config.latent_size).to(batch.images)
        return {"codes": codes_BE, "fake": self.generator(z_BZ, codes_BE.detach())}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Algorithm 1: real images with their texts against wrong texts and generated images."""
        judge, codes_BE = self.discriminator, shared["codes"]
        maps = judge.image(batch.images)
        terms = {
            "right": real_or_fake(right_B1 := judge.match(maps, codes_BE), real=True),
            "wrong": real_or_fake(judge.match(maps, _others(codes_BE)), real=False),
            "fake": real_or_fake(fake_B1 := judge(shared["fake"].detach(), codes_BE), real=False),
        }
        value = terms["right"] + (terms["wrong"] + terms["fake"]) / 2
        metrics = {name: term.detach() for name, term in terms.items()}
        return Loss(value, metrics | accuracies(right_B1, fake_B1))

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """-log D(G(z, t), t), and the same for texts between two (equation 5), if weighted."""
        codes_BE, weight = shared["codes"].detach(), self.config.interpolation_weight
        terms = {"match": real_or_fake(self.discriminator(shared["fake"], codes_BE), real=True)}
        if weight:
            codes_BE = (codes_BE + _others(codes_BE)) / 2
            z_BZ = batch.normal("interpolated latent", self.config.latent_size).to(batch.images)
            logits = self.discriminator(self.generator(z_BZ, codes_BE), codes_BE)
            terms["interpolated"] = real_or_fake(logits, real=True)
        value = terms["match"] + weight * terms.get("interpolated", 0)
        return Loss(value, {name: term.detach() for name, term in terms.items()})

    def sample(
        self, num_images: int, generator: Generator, condition: Tensor | None = None
    ) -> Tensor:
        """Images of what the texts ``condition``, uint8 (num_images, T), say."""
        captions_BT = _captions(condition)
        if captions_BT.dim() != 2 or len(captions_BT) != num_images:
            shape = tuple(captions_BT.shape)
            raise ValueError(f"{num_images} images need captions ({num_images}, T), not {shape}")
        z_BZ = self._latents(num_images, generator)
        with evaluating(self):
            images: Tensor = self.generator(z_BZ, self.text(captions_BT))
        return images.float()

    def pictures(self, examples: Batch, generator: Generator) -> Mapping[str, Rows]:
        """interpolation: each row goes from one example's text to another's with the same z."""
        rows, columns = len(examples) // 2, 8
        if not rows:
            return {}
        z_RZ = self._latents(rows, generator)
        with evaluating(self):
            codes_BE = between(self.text(_captions(examples.captions)[: 2 * rows]), columns)
            images: Tensor = self.generator(z_RZ.repeat_interleave(columns, 0), codes_BE)
        return {"interpolation": in_rows(images.float(), columns)}

    def inference_module(self) -> nn.Module:
        """Text encoder and generator."""
        return nn.ModuleDict({"text": self.text, "generator": self.generator})

    def _latents(self, count: int, generator: Generator) -> Tensor:
        shape = (count, self.config.latent_size)
        return torch.randn(shape, generator=generator, device=generator.device)


def _captions(captions_BT: Tensor | None) -> Tensor:
    if captions_BT is None:
        raise ValueError("text2image needs captions: train on a set that has them; sample with one")
    return captions_BT


def _others(codes_BE: Tensor) -> Tensor:
    """For each image the text of the one before it."""
    if len(codes_BE) < 2:
        raise ValueError(
            "text2image shows each image with the text of another: computed at once must be at "
            "least 2; use a larger train.batch_size or train.microbatch_size, or fewer workers"
        )
    return codes_BE.roll(1, 0)
