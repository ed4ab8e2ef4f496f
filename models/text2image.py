"""Text to image: GAN-CLS, a GAN whose discriminator also learns to match images and texts.

Reed, Akata, Yan, Logeswaran, Schiele and Lee, "Generative Adversarial Text to Image Synthesis",
ICML 2016, https://arxiv.org/abs/1605.05396. As in the paper: both networks (section 4.1), the
matching-aware discriminator (algorithm 1) and interpolated texts (equation 5). What the paper
leaves open is as in its code. For an image x, its text t, the text w of another image, y = G(z, t):

    D:  CE(D(x, t), 1) + (CE(D(x, w), 0) + CE(D(y, t), 0)) / 2
    G:  CE(D(y, t), 1) + interpolation_weight CE(D(G(z', (t + w) / 2), (t + w) / 2), 1)

CE is the cross-entropy against "all 1" or "all 0". w is the text of the previous image in the same
forward pass, so it depends on the number of workers and microbatches, as batch normalisation does;
its distribution does not. Two texts may be equal by chance.

Samples use running statistics, so an image does not depend on the others in its batch.

Departures:
- The paper's text encoder is a character-level network of convolutional and recurrent layers,
  pretrained to embed texts and images together (Reed, Akata, Lee and Schiele, "Learning Deep
  Representations of Fine-Grained Visual Descriptions", CVPR 2016,
  https://arxiv.org/abs/1605.05395). Ours is smaller: convolutions over bytes and a mean over time.
  It is trained jointly with the discriminator, whose task of telling the text of an image from
  other texts is similar. The generator uses its codes without a gradient.
- A mismatched pair is a real image with the text of another image (algorithm 1); the authors' code
  pairs a text with another image. Only the generator is trained on interpolated texts.
- One layer more or less for each doubling or halving of 64 px, with the width doubled each time.

Dimensions: see models/base.py. T: bytes of a caption, E: size of a text code, F: channels.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import final

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Filters, ImageSide, LearningRate, Units, Weight
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
)
from orchestrator.models.parts import noise
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
from orchestrator.models.parts.sampler import evaluating

BYTE_SIZE, POOLED = 64, 3
"""Embedding size of a byte; max-pooling width between convolutions."""

METRICS = {
    "discriminator/right": "Cross-entropy in nats on real images with their text; near 0: D wins.",
    "discriminator/wrong": "The same on real images with another text; 0.69: D ignores the text.",
    "discriminator/fake": "The same on generated images; near 0: the discriminator wins.",
    **accuracy_metrics("discriminator"),
    "generator/match": "-log D of generated images with their text in nats; 0.69 is balance.",
    "generator/interpolated": "The same for interpolated texts; only with interpolation_weight.",
}


class Config(ModelConfig):
    """Hyperparameters of GAN-CLS; defaults as in the paper and its code."""

    image_size: ImageSide = 64
    """Height and width of the images in pixels: a power of two, at least 16."""
    filters: int = Field(default=128, ge=4, le=4_096)
    """Channels of the generator's map next to the image; they double at each layer inwards."""
    discriminator_filters: int = Field(default=64, ge=4, le=4_096)
    """Channels of the discriminator's first layer; they double at each further one."""
    latent_size: Units = 100
    """Dimensions of the latent, which is standard normal."""
    text_size: Units = 1024
    """Dimensions of a text code."""
    text_filters: Filters = 256
    """Channels of the text encoder's convolutions."""
    projection: Units = 256
    """Dimensions to which each network projects a text code."""
    interpolation_weight: Weight = 0.0
    """Weight of the generator's loss on interpolated texts; 1 is the paper's GAN-INT-CLS."""
    learning_rate: LearningRate = 2e-4
    """Initial learning rate of Adam, for all networks."""
    halvings: int = Field(default=5, ge=0, le=1_000)
    """Number of times the learning rate is halved, equally spaced; 5: every 100 of 600 epochs."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay rate of the first moment."""

    @property
    def fewest_images(self) -> int:
        """2: the text of another image is the mismatching one."""
        return 2

    @property
    def unlogged_metrics(self) -> frozenset[str]:
        """The interpolation loss, unless it has a weight."""
        return frozenset() if self.interpolation_weight else frozenset({"generator/interpolated"})

    @property
    def takes(self) -> frozenset[Input]:
        """Captions."""
        return frozenset({"captions"})

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_four_pixels(cls, size: int) -> int:
        return power_of_two(size)


class _TextEncoder(nn.Module):
    """captions_BT as in ``Batch.captions`` -> codes_BE, independent of the amount of padding."""

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
                # Both are at least 0 and are 0 after the text, so padding changes no maximum.
                x_BFT = F.max_pool1d(x_BFT, POOLED, ceil_mode=True)
                here_B1T = F.max_pool1d(here_B1T, POOLED, ceil_mode=True)
            x_BFT = F.relu(convolution(x_BFT)) * here_B1T
        mean_BF = x_BFT.sum(2) / here_B1T.sum(2).clamp(min=1)
        codes_BE: Tensor = self.code(mean_BF)
        return codes_BE


class _Residual(nn.Module):
    """Residual bottleneck with a quarter of the channels, then ``activation``: (B, F, H, W)."""

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
    """codes_BE -> (B, projection)."""
    return nn.Sequential(nn.Linear(config.text_size, config.projection), nn.LeakyReLU(0.2))


def _levels(config: Config) -> int:
    """Return the number of halvings from the image to a 4x4 map."""
    return int(math.log2(config.image_size)) - 2


class _Generator(nn.Module):
    """z_BZ, codes_BE -> images_BCHW in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.projection = _projection(config)
        widths = [config.filters << level for level in reversed(range(_levels(config)))]
        inputs = config.latent_size + config.projection
        # On one pixel a 4x4 transposed convolution is a dense layer to a 4x4 map.
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
    """images_BCHW, codes_BE -> logits (B, 1, 1, 1), via image features (B, F, 4, 4)."""

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
    """Return a learning-rate factor that is halved ``times`` times, equally spaced."""
    return lambda clock: 0.5 ** float(int(clock.share * (times + 1)))


@final
class Model(GenerativeModel):
    """A text encoder, a text-conditional generator, and a discriminator of (image, text) pairs."""

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
        """Discriminator and text encoder, then the generator."""
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
        """Return the text codes of the batch, (B, E), and the images generated from them.

        Images pass no gradient to the text encoder.
        """
        codes_BE = self.text(_captions(batch.captions))
        z_BZ = batch.normal("latent", self.config.latent_size).to(batch.images)
        return {"codes": codes_BE, "fake": self.generator(z_BZ, codes_BE.detach())}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Algorithm 1: matching pairs against mismatched texts and generated images."""
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
        """-log D(G(z, t), t), plus the weighted term for interpolated texts (equation 5)."""
        codes_BE, weight = shared["codes"].detach(), self.config.interpolation_weight
        terms = {"match": real_or_fake(self.discriminator(shared["fake"], codes_BE), real=True)}
        if weight:
            codes_BE = (codes_BE + _others(codes_BE)) / 2
            z_BZ = batch.normal("interpolated latent", self.config.latent_size).to(batch.images)
            logits = self.discriminator(self.generator(z_BZ, codes_BE), codes_BE)
            terms["interpolated"] = real_or_fake(logits, real=True)
        value = terms["match"] + weight * terms.get("interpolated", 0)
        return Loss(value, {name: term.detach() for name, term in terms.items()})

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Generate images for the captions ``condition``."""
        return self.decode(self.latents(seeds), condition)

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """interpolation: images between the texts of two examples in each row, with the same z."""
        rows, columns = len(examples) // 2, 8
        if not rows:
            return {}
        z_RZ = self.latents(torch.arange(rows, device=examples.images.device))
        with evaluating(self):
            codes_BE = between(self.text(_captions(examples.captions)[: 2 * rows]), columns)
            images: Tensor = self.generator(z_RZ.repeat_interleave(columns, 0), codes_BE)
        return {"interpolation": in_rows(images.float(), columns)}

    def inference_module(self) -> nn.Module:
        """Text encoder and generator."""
        return nn.ModuleDict({"text": self.text, "generator": self.generator})

    def latents(self, seeds: Tensor) -> Tensor:
        """Return z, (B, Z)."""
        return noise.normal(seeds, "latent", (self.config.latent_size,))

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z, text) for z, (B, Z), and captions, (B, T)."""
        images: Tensor = self.generator(latents, self.text(_captions(condition)))
        return images


def _captions(captions_BT: Tensor | None) -> Tensor:
    if captions_BT is None:
        raise ValueError("text2image needs captions: use a data set with captions; sample with one")
    return captions_BT


def _others(codes_BE: Tensor) -> Tensor:
    """Return the text codes shifted by one image."""
    if len(codes_BE) < 2:
        raise ValueError(
            "text2image pairs each image with the text of another, so a forward pass needs at "
            "least 2; use a larger train.batch_size or train.microbatch_size, or fewer workers"
        )
    return codes_BE.roll(1, 0)
