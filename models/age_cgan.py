"""Face ageing: a conditional adversarial autoencoder (CAAE).

Zhang, Song and Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017,
https://arxiv.org/abs/1702.08423. As in the paper: an encoder E maps a face to a code z of the
person without the age; a generator G draws the person at any age l; a discriminator D_z pushes the
codes towards a uniform prior, and D_img makes the faces look real at their age. Decoding a code
with another age is ageing or rejuvenation. With z = E(x), y = G(z, l), p uniform in [-1, 1] and CE
the cross-entropy against "all 1" or "all 0":

    D_z:      CE(D_z(p), 1) + CE(D_z(z), 0)
    D_img:    CE(D_img(x, l), 1) + CE(D_img(y, l), 0)
    E and G:  |x - y| + image_weight CE(D_img(y, l), 1) + code_weight CE(D_z(z), 1)
              + total_variation_weight TV(y)

The distance and TV are means over the values of an image. An age is one-hot coded with +1 and -1.
G gets it tiled to about the size of z, D_img as maps concatenated to those of its first layer.

D_img uses batch normalisation, so training depends on how a batch is split over workers and
microbatches. Sampling does not.

Departures:
- Labels hold the age only, not the gender as in the paper.
- D_z has no batch normalisation, unlike in the authors' code: codes and prior would be normalised
  separately, which hides the spread of the codes from D_z.
- ``code_weight`` is our choice. It is 0 in the authors' code, which leaves the prior unenforced.
- No biases before a normalisation. He initialisation (variance 2 / number of inputs), because with
  smaller weights all codes end in the same corner, where tanh is flat.
- The discriminators are updated first; encoder and generator train against the updated ones.
- Images below 64 px have fewer layers: four halvings, but none below a map of 4 pixels.

Dimensions: see models/base.py.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, cast, final

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Filters, ImageSide, LearningRate, Units, Weight
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
    accuracies,
    accuracy_metrics,
    power_of_two,
    real_or_fake,
)
from orchestrator.models.parts.sampler import evaluating

CODE_UNITS = (64, 32, 16)
"""Hidden units of D_z."""
MAX_AGES = 16
"""Most ages in a row of the ageing picture."""

METRICS = {
    "discriminators/prior": "Cross-entropy in nats on codes drawn from the prior; 0.69 is balance.",
    "discriminators/code": "The same on the codes of images; 0.69 is balance.",
    "discriminators/real": "Cross-entropy in nats on real images with their age; near 0: D wins.",
    "discriminators/fake": "The same on reconstructions; near 0: the discriminator wins.",
    **accuracy_metrics("discriminators"),
    "autoencoder/reconstruction": "Mean distance to the image on [-1, 1]; falls, lower is better.",
    "autoencoder/image": "-log D_img of reconstructions in nats; 0.69 is balance, lower fools it.",
    "autoencoder/code": "-log D_z of codes in nats; 0.69 is balance, lower fools it.",
    "autoencoder/total_variation": "Mean difference between neighbouring pixels; low is smooth.",
}


class Config(ModelConfig):
    """Hyperparameters of CAAE; defaults as in the paper and its code, except ``code_weight``."""

    image_size: ImageSide = 128
    """Height and width of the images in pixels: a power of two, at least 16."""
    classes: int = Field(default=10, ge=2, le=10_000)
    """Number of age groups, youngest first; 10 in the paper."""
    latent_size: Units = 50
    """Dimensions of a code."""
    filters: Filters = 64
    """Channels of the outermost maps of encoder and generator; they double at each level."""
    discriminator_filters: Filters = 16
    """Channels of D_img's first layer; they double at each of the other three."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance to the image. l1: mean absolute error, as in the authors' code; l2: mean square."""
    image_weight: Weight = 1e-4
    """Weight of the adversarial term of D_img in the loss of encoder and generator."""
    code_weight: Weight = 1e-2
    """Weight of the adversarial term of D_z in the same loss; 0 leaves the prior unenforced."""
    total_variation_weight: Weight = 0.0
    """Weight of the total variation; higher is smoother."""
    learning_rate: LearningRate = 2e-4
    """Adam's learning rate, for all networks."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay rate of the first moment."""

    @property
    def fewest_images(self) -> int:
        """2 at 16 px, where D_img's last map is one pixel, which is normalised over the batch."""
        return 2 if self.image_size < 32 else 1

    @property
    def takes(self) -> frozenset[Input]:
        """Labels, which are the ages."""
        return frozenset({"labels"})

    @property
    def num_classes(self) -> int:
        """Number of age groups that ``sample`` can be conditioned on."""
        return self.classes

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_four_pixels(cls, size: int) -> int:
        return power_of_two(size)


def _levels(config: Config) -> int:
    return min(4, int(math.log2(config.image_size)) - 2)


def _encoder(config: Config) -> nn.Sequential:
    """images_BCHW -> codes_BZ in [-1, 1]."""
    levels = _levels(config)
    widths = [config.channels, *(config.filters << level for level in range(levels))]
    layers: list[nn.Module] = []
    for cin, cout in pairwise(widths):
        layers += [nn.Conv2d(cin, cout, 5, 2, 2), nn.ReLU()]
    values = widths[-1] * (config.image_size >> levels) ** 2
    dense = nn.Linear(values, config.latent_size)
    return nn.Sequential(*layers, nn.Flatten(), dense, nn.Tanh())


class _Generator(nn.Module):
    """codes_BZ, ages_BK coded as -1 and +1 -> images_BCHW in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels = _levels(config)
        size = config.image_size >> levels
        widths = [config.filters << level for level in reversed(range(levels + 1))]
        self.copies = max(1, config.latent_size // config.classes)
        inputs = config.latent_size + self.copies * config.classes
        layers: list[nn.Module] = [
            nn.Linear(inputs, widths[0] * size**2),
            nn.Unflatten(1, (widths[0], size, size)),
            nn.ReLU(),
        ]
        for cin, cout in pairwise(widths):
            layers += [nn.ConvTranspose2d(cin, cout, 5, 2, 2, 1), nn.ReLU()]
        last = nn.ConvTranspose2d(widths[-1], config.channels, 5, 1, 2)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())

    def forward(self, codes_BZ: Tensor, ages_BK: Tensor) -> Tensor:
        tiled = ages_BK.to(codes_BZ).repeat(1, self.copies)
        images_BCHW: Tensor = self.layers(torch.cat([codes_BZ, tiled], 1))
        return images_BCHW


def _code_discriminator(config: Config) -> nn.Sequential:
    """codes_BZ -> logits (B, 1)."""
    layers: list[nn.Module] = []
    for units, following in pairwise((config.latent_size, *CODE_UNITS)):
        layers += [nn.Linear(units, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(CODE_UNITS[-1], 1))


class _ImageDiscriminator(nn.Module):
    """images_BCHW, ages_BK coded as -1 and +1 -> logits (B, 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, *others = (config.discriminator_filters << level for level in range(4))
        self.first = _halving(config.channels, first)
        layers = [_halving(first + config.classes, others[0])]
        layers += [_halving(cin, cout) for cin, cout in pairwise(others)]
        units = 64 * config.discriminator_filters
        self.others = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(others[-1] * (config.image_size >> 4) ** 2, units),
            nn.LeakyReLU(0.2),
            nn.Linear(units, 1),
        )

    def forward(self, images_BCHW: Tensor, ages_BK: Tensor) -> Tensor:
        x = self.first(images_BCHW)
        maps = ages_BK.to(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        logits_B1: Tensor = self.others(torch.cat([x, maps], 1))
        return logits_B1


def _halving(cin: int, cout: int) -> nn.Sequential:
    convolution = nn.Conv2d(cin, cout, 5, 2, 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(cout), nn.ReLU())


def _initialise(module: nn.Module) -> None:
    """He initialisation: weights from N(0, 2 / fan-in), biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        weight = module.weight
        inputs = weight[0].numel()
        if isinstance(module, nn.ConvTranspose2d):
            inputs = weight[:, 0].numel() // module.stride[0] ** 2
        nn.init.normal_(weight, 0, (2 / inputs) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def total_variation(images_BCHW: Tensor) -> Tensor:
    """Mean absolute difference to the pixel below plus that to the pixel on the right."""
    down, right = (images_BCHW.diff(dim=axis).abs().mean() for axis in (2, 3))
    return down + right


@final
class Model(GenerativeModel):
    """An encoder, a generator, and discriminators of codes and of images."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = nn.ModuleDict(
            {"encoder": _encoder(config), "generator": _Generator(config)}
        )
        self.discriminators = nn.ModuleDict(
            {"code": _code_discriminator(config), "image": _ImageDiscriminator(config)}
        )
        self.apply(_initialise)

    def phases(self) -> tuple[Phase, ...]:
        """Both discriminators, then encoder and generator."""
        config = self.config

        def adam(module: nn.Module) -> torch.optim.Adam:
            betas = (config.beta1, 0.999)
            return torch.optim.Adam(module.parameters(), config.learning_rate, betas, fused=True)

        judges, coders = self.discriminators, self.autoencoder
        return (
            Phase("discriminators", judges, adam(judges), self.discriminators_loss),
            Phase("autoencoder", coders, adam(coders), self.autoencoder_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """Return the codes of the batch, (B, Z), and its reconstructions."""
        codes_BZ = self.autoencoder["encoder"](batch.images)
        faces = self.autoencoder["generator"](codes_BZ, self._ages(batch.labels))
        return {"codes": codes_BZ, "faces": faces}

    def discriminators_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Cross-entropies: prior against encoded codes, real images against reconstructions."""
        judge_code, judge_image = self.discriminators["code"], self.discriminators["image"]
        codes_BZ, ages_BK = shared["codes"].detach(), self._ages(batch.labels)
        prior_BZ = 2 * batch.uniform("prior", self.config.latent_size) - 1
        terms = {
            "prior": real_or_fake(judge_code(prior_BZ.to(codes_BZ)), real=True),
            "code": real_or_fake(judge_code(codes_BZ), real=False),
            "real": real_or_fake(real := judge_image(batch.images, ages_BK), real=True),
            "fake": real_or_fake(
                fake := judge_image(shared["faces"].detach(), ages_BK), real=False
            ),
        }
        value = torch.stack([*terms.values()]).sum()
        metrics = {name: term.detach() for name, term in terms.items()}
        return Loss(value, metrics | accuracies(real, fake))

    def autoencoder_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Distance to the image, both adversarial terms and total variation, weighted."""
        config, faces = self.config, shared["faces"]
        distance = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
        logits_B1 = self.discriminators["image"](faces, self._ages(batch.labels))
        terms = {
            "reconstruction": distance(faces.float(), batch.images),
            "image": real_or_fake(logits_B1, real=True),
            "code": real_or_fake(self.discriminators["code"](shared["codes"]), real=True),
            "total_variation": total_variation(faces.float()),
        }
        value = (
            terms["reconstruction"]
            + config.image_weight * terms["image"]
            + config.code_weight * terms["code"]
            + config.total_variation_weight * terms["total_variation"]
        )
        return Loss(value, {name: term.detach() for name, term in terms.items()})

    def age(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the persons in ``images`` at the ages ``labels``; their own age reconstructs them.

        Images are (B, C, H, W) in [-1, 1], labels int64 (B,). Deterministic.
        """
        ages_BK = self._ages(labels, len(images))
        with evaluating(self.autoencoder):
            codes_BZ = self.autoencoder["encoder"](images)
            faces: Tensor = self.autoencoder["generator"](codes_BZ, ages_BK)
        return faces.float()

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Draw faces at the ages ``condition``."""
        return self.decode(self.latents(seeds), condition)

    def latents(self, seeds: Tensor) -> Tensor:
        """Return codes uniform in [-1, 1], (B, Z)."""
        return 2 * noise.uniform(seeds, "latent", (self.config.latent_size,)) - 1

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Decode codes, (B, Z), to faces at the ages ``condition``, (B,)."""
        return cast(Tensor, self.autoencoder["generator"](latents, self._ages(condition)))

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """ageing: each example, then that person at every age, youngest first.

        Of more than MAX_AGES, so many are shown, spread evenly.
        """
        shown = min(self.config.classes, MAX_AGES)
        ages = torch.arange(shown, device=examples.images.device) * self.config.classes // shown
        given = examples.images.repeat_interleave(shown, 0)
        faces = self.age(given, ages.repeat(len(examples))).split(shown)
        return {"ageing": [[x, *row] for x, row in zip(examples.images, faces, strict=True)]}

    def inference_module(self) -> nn.Module:
        """Encoder and generator."""
        return self.autoencoder

    def _ages(self, labels_B: Tensor | None, count: int | None = None) -> Tensor:
        """Return labels one-hot coded with +1 and -1, (B, K).

        ``count`` is the number of labels expected from a user; None skips the checks.
        """
        classes = self.config.classes
        if labels_B is None:
            raise ValueError("age_cgan needs labels; the set has none: use one with classes")
        if count is not None and labels_B.shape != (count,):
            raise ValueError(f"{count} faces need as many ages, not {tuple(labels_B.shape)}")
        if count is not None and ((labels_B < 0) | (labels_B >= classes)).any():
            raise ValueError(f"ages are numbers from 0 to {classes - 1}; got {labels_B.tolist()}")
        return 2.0 * F.one_hot(labels_B, classes) - 1
