"""CycleGAN: unpaired translation between two sets of images.

Zhu, Park, Isola and Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks", ICCV 2017, https://arxiv.org/abs/1703.10593. As in the paper: the objective (equations 1
to 3 with the least-squares losses of section 4), the identity loss of section 5.2, the pool of past
translations, the networks (appendix 7.2), Adam and the linear decay.

G translates A to B, F translates B to A; D_A and D_B tell real from translated images:

    generators:      mean (D_B(G(a)) - 1)^2 + cycle |F(G(a)) - a| + cycle identity |F(a) - a|
                     and the same with A and B, G and F exchanged
    discriminators:  1/2 mean (D_B(b) - 1)^2 + 1/2 mean D_B(past G(a))^2, and the same for D_A

A is ``Batch.condition`` and B is ``Batch.images``, two unrelated images. ``sample`` is G;
``data.direction: BtoA`` in a job swaps A and B.

Several workers: each worker has its own pools, and checkpoints hold the pools of all of them. A run
resumed with fewer workers drops the pools of the last ones; with more, the new ones start with
copies.

Departures:
- The generators are updated first, as in the authors' code, but the discriminators then see
  translations by the updated generators, which makes a step independent of how a batch is split
  into microbatches. It costs two forward passes without gradients.

Dimensions: see models/base.py. P: height and width of a discriminator's map.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, final

import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import (
    NOT_BOOLEAN,
    Filters,
    ImageSide,
    Layers,
    LearningRate,
    NonNegativeCount,
    Weight,
)
from orchestrator.models.base import (
    Batch,
    GenerativeModel,
    Input,
    Loss,
    ModelConfig,
    Phase,
    Rows,
    Shared,
    constant,
)
from orchestrator.models.parts.adversarial import (
    accuracies,
    accuracy_metrics,
    discriminator_wins,
    linear_decay,
    normal_weights,
)
from orchestrator.models.parts.image_pool import ImagePool
from orchestrator.models.parts.patch import STRIDED_LAYERS, patch_discriminator, patch_map_size

METRICS = {
    "generators/gan": "Mean squared distance of the scores of translations from 1, summed over "
    "both directions: about 0.5 in balance (scores of 1/2), near 2 if the discriminators win.",
    "generators/cycle": "Mean absolute difference between an image and its translation there and "
    "back, summed over both directions, before cycle_weight; falls. If it is near 0 early on, the "
    "generators may be copying their input.",
    "generators/identity": "Mean absolute difference between an image of the target set and its "
    "translation, summed over both directions, unweighted; falls. Only with identity_weight above "
    "0.",
    "discriminators/real": "Mean squared distance of the scores of real images from 1, summed over "
    "both sets: about 0.5 in balance, near 0 if the discriminators are confident.",
    "discriminators/fake": "The same for past translations and a target of 0. If both stay near 0, "
    "the generators get no useful gradient.",
    **accuracy_metrics("discriminators"),
}


class Config(ModelConfig):
    """Hyperparameters of CycleGAN; defaults as in the paper for 256 px."""

    image_size: ImageSide = 256
    """Height and width of the images in pixels: a multiple of 4."""
    filters: Filters = 64
    """Channels of the generators' outermost layers; the residual blocks have 4 times as many."""
    blocks: Layers = 9
    """Residual blocks per generator; 9 at 256 px and 6 at 128 px in the paper."""
    discriminator_filters: Filters = 64
    """Channels of a discriminator's first layer; deeper layers have up to 8 times as many."""
    receptive_field: Annotated[Literal[16, 34, 70, 142, 286], NOT_BOOLEAN] = 70
    """Receptive field of one discriminator output, in pixels."""
    cycle_weight: Weight = 10.0
    """Weight of the cycle-consistency loss (L1)."""
    identity_weight: Weight = 0.5
    """Weight of the identity loss (L1), multiplied by cycle_weight; it preserves colours. The paper
    uses it for paintings only, the authors' code always."""
    pool_size: NonNegativeCount = 50
    """Past translations kept for each discriminator; 0: it sees only the current ones."""
    learning_rate: LearningRate = 2e-4
    """Adam's learning rate, for all networks."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's decay rate of the first moment."""
    decay_from: float | None = Field(default=0.5, ge=0, lt=1)
    """Fraction of the run after which the learning rate decays linearly to 0; null: constant."""

    @property
    def unlogged_metrics(self) -> frozenset[str]:
        """The identity loss, unless it has a weight."""
        return frozenset() if self.identity_weight else frozenset({"generators/identity"})

    @property
    def takes(self) -> frozenset[Input]:
        """Unpaired images of two sets."""
        return frozenset({"unpaired"})

    @field_validator("image_size")
    @classmethod
    def _comes_back_to_its_size(cls, size: int) -> int:
        if size < 16 or size % 4:
            below = max(16, size // 4 * 4)
            raise ValueError(f"must be a multiple of 4, at least 16; use {below} or {below + 4}")
        return size

    @field_validator("receptive_field")
    @classmethod
    def _has_a_map(cls, field: int, info: ValidationInfo) -> int:
        size = info.data.get("image_size")
        if size is not None and patch_map_size(size, field) < 1:
            fitting = [f for f in STRIDED_LAYERS if patch_map_size(size, f) >= 1]
            raise ValueError(f"is too large for image_size {size}; use one of {fitting}")
        return field


class _Residual(nn.Module):
    """Residual block of two 3x3 convolutions: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.layers(x)
        return x + residual


def _generator(config: Config) -> nn.Sequential:
    """Images to images, (B, C, H, W) in [-1, 1]: appendix 7.2 of the paper."""
    width, channels = config.filters, config.channels
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, padding=3, padding_mode="reflect"),
        nn.InstanceNorm2d(width),
        nn.ReLU(),
    ]
    for cin in (width, 2 * width):
        down = nn.Conv2d(cin, 2 * cin, 3, stride=2, padding=1)
        layers += [down, nn.InstanceNorm2d(2 * cin), nn.ReLU()]
    layers += [_Residual(4 * width) for _ in range(config.blocks)]
    for cin in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(cin, cin // 2, 3, stride=2, padding=1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(cin // 2), nn.ReLU()]
    last = nn.Conv2d(width, channels, 7, padding=3, padding_mode="reflect")
    return nn.Sequential(*layers, last, nn.Tanh())


@final
class Model(GenerativeModel):
    """A generator for each direction, and a discriminator with a pool for each set."""

    config: Config
    per_rank_buffers = ("pools.",)
    signs_of_collapse = (discriminator_wins("discriminators"),)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generators = nn.ModuleDict({way: _generator(config) for way in ("a_to_b", "b_to_a")})
        judge = (config.channels, config.discriminator_filters, config.receptive_field)
        self.discriminators = nn.ModuleDict(
            {kind: patch_discriminator(*judge, "instance") for kind in "ab"}
        )
        sizes = (config.pool_size, config.channels, config.image_size)
        self.pools = nn.ModuleDict({kind: ImagePool(*sizes) for kind in "ab" if config.pool_size})
        self.apply(normal_weights)

    def phases(self) -> tuple[Phase, ...]:
        """Both generators, then both discriminators."""
        config = self.config
        factor = constant if config.decay_from is None else linear_decay(config.decay_from)

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            adam = torch.optim.Adam(
                module.parameters(), config.learning_rate, (config.beta1, 0.999), fused=True
            )
            return Phase(name, module, adam, loss, learning_rate_factor=factor)

        return (
            phase("generators", self.generators, self.generators_loss),
            phase("discriminators", self.discriminators, self.discriminators_loss),
        )

    def generators_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Adversarial, cycle and identity losses, summed over both directions."""
        a_BCHW, b_BCHW = _condition(batch.condition), batch.images
        b_of_a, a_of_b = self._g(a_BCHW), self._f(b_BCHW)
        gan = _distance(self._scores("b", b_of_a), 1) + _distance(self._scores("a", a_of_b), 1)
        cycle = _l1(self._f(b_of_a), a_BCHW) + _l1(self._g(a_of_b), b_BCHW)
        value = gan + self.config.cycle_weight * cycle
        metrics = {"gan": gan.detach(), "cycle": cycle.detach()}
        if self.config.identity_weight:
            identity = _l1(self._f(a_BCHW), a_BCHW) + _l1(self._g(b_BCHW), b_BCHW)
            value = value + self.config.cycle_weight * self.config.identity_weight * identity
            metrics["identity"] = identity.detach()
        return Loss(value, metrics)

    def discriminators_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Least-squares losses on real images and on images from the pools, halved."""
        a_BCHW, b_BCHW = _condition(batch.condition), batch.images
        with torch.no_grad():
            b_of_a, a_of_b = self._g(a_BCHW), self._f(b_BCHW)
        past_a, past_b = self._past("a", a_of_b, batch), self._past("b", b_of_a, batch)
        reals = [self._scores("a", a_BCHW), self._scores("b", b_BCHW)]
        fakes = [self._scores("a", past_a), self._scores("b", past_b)]
        real = _distance(reals[0], 1) + _distance(reals[1], 1)
        fake = _distance(fakes[0], 0) + _distance(fakes[1], 0)
        metrics = {"real": real.detach(), "fake": fake.detach()}
        metrics |= accuracies(torch.cat(reals), torch.cat(fakes), threshold=0.5)
        return Loss((real + fake) / 2, metrics)

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Translate images of A to B; the seeds make no difference."""
        return self._g(_condition(condition))

    def inference_module(self) -> nn.Module:
        """The generator from A to B."""
        return self.generators["a_to_b"]

    @torch.no_grad()
    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """cycle: a, G(a), F(G(a)) for each example, and below it b, F(b), G(F(b))."""
        a_BCHW, b_BCHW = _condition(examples.condition), examples.images
        b_of_a, a_of_b = self._g(a_BCHW), self._f(b_BCHW)
        there = zip(a_BCHW, b_of_a, self._f(b_of_a), strict=True)
        back = zip(b_BCHW, a_of_b, self._g(a_of_b), strict=True)
        return {"cycle": [row for rows in zip(there, back, strict=True) for row in rows]}

    def _g(self, a_BCHW: Tensor) -> Tensor:
        b_BCHW: Tensor = self.generators["a_to_b"](a_BCHW)
        return b_BCHW

    def _f(self, b_BCHW: Tensor) -> Tensor:
        a_BCHW: Tensor = self.generators["b_to_a"](b_BCHW)
        return a_BCHW

    def _scores(self, kind: str, images_BCHW: Tensor) -> Tensor:
        """Return the scores of the discriminator of set ``kind``, float32 (B, 1, P, P)."""
        scores_B1PP: Tensor = self.discriminators[kind](images_BCHW)
        return scores_B1PP.float()

    def _past(self, kind: str, images_BCHW: Tensor, batch: Batch) -> Tensor:
        """Exchange images with the pool, if there is one."""
        if kind not in self.pools:
            return images_BCHW
        pool = self.pools[kind]
        assert isinstance(pool, ImagePool)
        return pool.exchange(images_BCHW, batch.uniform(f"pool {kind}", 2))


def _condition(condition: Tensor | None) -> Tensor:
    if condition is None:
        raise ValueError("cyclegan needs images of two sets, but the data set has no input images")
    return condition


def _distance(scores_B1PP: Tensor, target: float) -> Tensor:
    """Return the mean squared distance of scores from ``target``."""
    return (scores_B1PP - target).square().mean()


def _l1(images: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(images.float(), target)
