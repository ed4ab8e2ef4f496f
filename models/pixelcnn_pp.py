"""PixelCNN++: an autoregressive model of whole pixels as mixtures of logistics.

Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications", ICLR 2017, https://arxiv.org/abs/1701.05517. As in the
paper: the likelihood and the dependence between colours (sections 2.1 and 2.2, equations 1 to 3; in
models/parts/logistic.py), the multi-scale network with long and short skip connections (sections
2.3 and 2.4), dropout (2.5), Adam and its learning rate (section 3 and the authors' code), and
data-dependent initialisation with weight normalisation (models/parts/weight_norm.py).

Two streams see earlier pixels through shifted convolutions: the vertical one sees all rows above,
the horizontal one also the pixels to the left. Each is an encoder to coarser maps and a decoder
back, made of gated residual layers. The horizontal stream takes the vertical one as input.

Sampling caches activations (Ramachandran et al., "Fast Generation for Convolutional Autoregressive
Models", 2017, https://arxiv.org/abs/1704.06001): the vertical stream runs once per row, the
horizontal one once per pixel, coarser maps only where they have a new position. The result equals
a pass over the whole image up to rounding.

The paper reports results with Polyak averaging: ``train.ema_decay: 0.9995``.

Departures:
- The loss is a mean over images and values; the authors use a sum. Adam is invariant to the scale.
- The data-dependent initialisation runs without dropout, so that all workers get the same result.
- See models/parts/logistic.py for the likelihood of narrow logistics.

Dimensions: see models/base.py and models/parts/logistic.py. F: filters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, final

import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Classes, Filters, ImageSide, Layers, LearningRate
from orchestrator.models.base import Batch, Clock, Input, ModelConfig, Phase
from orchestrator.models.parts import logistic
from orchestrator.models.parts.autoregressive import (
    LIKELIHOOD_METRICS,
    Autoregressive,
    PixelOutputs,
)
from orchestrator.models.parts.sampler import evaluating
from orchestrator.models.parts.weight_norm import (
    Conv2d,
    ConvTranspose2d,
    Newest,
    WholeMaps,
    initialise_from_data,
)

METRICS = LIKELIHOOD_METRICS


class Config(ModelConfig):
    """Hyperparameters of PixelCNN++; defaults as in the paper for CIFAR-10."""

    image_size: ImageSide = 32
    """Height and width of the images in pixels: a multiple of 2 to the power of (scales - 1)."""
    levels: int = Field(default=256, ge=2, le=256)
    """Number of values of a colour: 256, or 2 for binary images."""
    scales: Layers = 3
    """Number of map sizes, each half the one before; 1 keeps the size of the image."""
    resnets: Layers = 5
    """Gated residual layers per scale, in encoder and decoder each."""
    filters: Filters = 160
    """Channels of all maps."""
    mixtures: Filters = 10
    """Logistic components of the mixture for a pixel."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Dropout probability in each residual layer."""
    classes: Classes = 0
    """Number of classes to condition on; 0: unconditional, labels are not needed."""
    learning_rate: LearningRate = 1e-3
    """Initial learning rate of Adam."""
    learning_rate_decay: float = Field(default=0.999995, gt=0, le=1)
    """Factor on the learning rate after each step."""
    beta1: float = Field(default=0.95, ge=0, lt=1)
    """Adam's decay rate of the first moment."""
    beta2: float = Field(default=0.9995, ge=0, lt=1)
    """Adam's decay rate of the second moment."""

    @property
    def takes(self) -> frozenset[Input]:
        """Labels, if class-conditional."""
        return frozenset({"labels"}) if self.classes else frozenset()

    @property
    def num_classes(self) -> int:
        """``classes``."""
        return self.classes

    @field_validator("scales")
    @classmethod
    def _halves_evenly(cls, scales: int, info: ValidationInfo) -> int:
        size = info.data.get("image_size")
        if size is not None and size % 2 ** (scales - 1):
            most = (size & -size).bit_length()
            fitting = "1" if most == 1 else f"1 to {most}"
            raise ValueError(f"needs an image_size that halves evenly; at {size} use {fitting}")
        return scales


class _Kind(NamedTuple):
    """Settings that differ between the streams."""

    kernel: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Left, right, top and bottom; shifts the kernel up, or up and left, of its pixel."""
    reads: int
    """Number of other streams that are inputs."""


VERTICAL = _Kind((2, 3), (1, 1, 1, 0), reads=0)
HORIZONTAL = _Kind((2, 2), (1, 0, 1, 0), reads=1)

_Conv: TypeAlias = Callable[[Conv2d, Tensor], Tensor]
Maps: TypeAlias = list[list[Tensor]]
"""For each scale, maps (B, F, H, W)."""


def concat_elu(x: Tensor) -> Tensor:
    """Concatenate ELU(x) and ELU(-x): (B, F, H, W) -> (B, 2F, H, W)."""
    return F.elu(torch.cat([x, -x], 1))


class _GatedResnet(nn.Module):
    """x + a sigmoid(b), with a and b from two convolutions; ``skips`` are added between them."""

    def __init__(self, config: Config, kind: _Kind, num_skips: int) -> None:
        super().__init__()
        width, kernel = config.filters, (kind.kernel, kind.padding)
        self.conv_in = Conv2d(2 * width, width, *kernel)
        self.skip = Conv2d(2 * num_skips * width, width) if num_skips else None
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = Conv2d(2 * width, 2 * width, *kernel, init_scale=0.1)
        self.label = nn.Embedding(config.classes, 2 * width) if config.classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, 0, 0.05)

    def forward(self, x: Tensor, skips: list[Tensor], labels: Tensor | None, conv: _Conv) -> Tensor:
        y = conv(self.conv_in, concat_elu(x))
        if self.skip is not None:
            y = y + conv(self.skip, concat_elu(torch.cat(skips, 1)))
        y = conv(self.conv_out, self.dropout(concat_elu(y)))
        if self.label is not None:
            y = y + self.label(labels)[:, :, None, None]
        value, gate = y.chunk(2, 1)
        return x + value * gate.sigmoid()


class _Stream(nn.Module):
    """Encoder and decoder of one stream, with long skip connections."""

    encoder: Any  # lists of layers, which torch types as Module
    decoder: Any
    shrink: Any
    grow: Any

    def __init__(self, config: Config, kind: _Kind) -> None:
        super().__init__()
        width, scales, count = config.filters, config.scales, config.resnets

        def blocks(number: int, num_skips: int) -> nn.ModuleList:
            return nn.ModuleList(_GatedResnet(config, kind, num_skips) for _ in range(number))

        self.encoder = nn.ModuleList(blocks(count, kind.reads) for _ in range(scales))
        self.decoder = nn.ModuleList(
            blocks(count + (scale < scales - 1), kind.reads + 1) for scale in range(scales)
        )
        self.shrink = nn.ModuleList(
            Conv2d(width, width, kind.kernel, kind.padding, stride=2) for _ in range(scales - 1)
        )
        self.grow = nn.ModuleList(
            ConvTranspose2d(width, width, kind.kernel[1]) for _ in range(scales - 1)
        )

    def forward(self, x: Tensor, read: Maps | None, labels: Tensor | None, run: WholeMaps) -> Maps:
        """Return the outputs of all residual layers, per scale in execution order.

        Args:
            x: (B, F, H, W) at the finest scale.
            read: the return value of the stream that is this one's input, or None.
        """
        reading = None if read is None else [iter(maps) for maps in read]
        outputs: Maps = [[] for _ in range(run.scales)]
        seen = [x]

        def step(block: nn.Module, scale: int, skips: list[Tensor]) -> Tensor:
            others = [] if reading is None else [next(reading[scale])]
            y: Tensor = block(x, [*others, *skips], labels, partial(run.conv, scale))
            outputs[scale].append(y)
            return y

        for scale in range(run.scales):
            for block in self.encoder[scale]:
                x = step(block, scale, [])
                seen.append(x)
            # Also where no coarser map is run: the layer must see every position.
            if scale < len(self.shrink):
                x = run.conv(scale, self.shrink[scale], x)
                seen.append(x)
        seen.pop()
        for scale in reversed(range(run.scales)):
            if scale < len(self.grow):
                x = run.grow(scale, self.grow[scale], x)
            for block in self.decoder[scale]:
                x = step(block, scale, [seen.pop()])
        return outputs


class _Network(nn.Module):
    """Images (B, C, H, W) -> parameters (B, P, H, W) of each pixel, from earlier pixels only."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, width = config.channels + 1, config.filters
        self.above = Conv2d(channels, width, (2, 3), (1, 1, 2, -1))
        self.row_above = Conv2d(channels, width, (1, 3), (1, 1, 1, -1))
        self.left = Conv2d(channels, width, (2, 1), (1, -1, 1, 0))
        self.vertical = _Stream(config, VERTICAL)
        self.horizontal = _Stream(config, HORIZONTAL)
        numbers = logistic.numbers_for_pixel(config.channels, config.mixtures)
        self.head = Conv2d(width, numbers)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        x, run = with_ones(images), WholeMaps(self.config.scales)
        read = self.vertical(self.above(x), None, labels, run)
        start = self.row_above(x) + self.left(x)
        output: Tensor = self.head(F.elu(self.horizontal(start, read, labels, run)[0][-1]))
        return output

    def newest(self, labels: Tensor | None) -> PixelOutputs:
        """Return a function that computes ``forward`` pixel by pixel."""
        size, scales = self.config.image_size, self.config.scales
        rows, pixels = Newest(size, whole_rows=True), Newest(size, whole_rows=False)
        read: Maps = []

        def outputs(images: Tensor, i: int, j: int, _: int) -> Tensor:
            x = F.pad(with_ones(images[:, :, max(0, i - 2) : i + 1]), (1, 1, max(0, 2 - i), 0))
            if j == 0:
                rows.move(i, 0, scales)
                start = rows.apply(self.above, x[:, :, :2])
                read[:] = self.vertical(start, None, labels, rows)
            pixels.move(i, j, scales)
            start = pixels.apply(self.row_above, x[:, :, 1:2, j : j + 3])
            start = start + pixels.apply(self.left, x[:, :, 1:, j : j + 1])
            here = [
                [map_BFHW[..., j >> scale, None] for map_BFHW in maps]
                for scale, maps in enumerate(read[: pixels.scales])
            ]
            last = self.horizontal(start, here, labels, pixels)[0][-1]
            return pixels.apply(self.head, F.elu(last))[:, :, 0, 0]

        return outputs


def with_ones(images: Tensor) -> Tensor:
    """Append a channel of ones, which distinguishes the image from its zero padding."""
    return F.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)


@final
class Model(Autoregressive):
    """Draws whole pixels, one turn each."""

    config: Config
    images_to_prepare = 32

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.uniforms = 1 + config.channels
        self.network = _Network(config)

    def prepare(self, examples: Batch) -> None:
        """Initialise gains and biases so that each layer's output has mean 0 over ``examples``."""
        with evaluating(self):
            initialise_from_data(self, lambda: self.outputs(examples.images, examples.labels))

    def phases(self) -> tuple[Phase, ...]:
        """One phase, the likelihood."""
        config = self.config
        adam = torch.optim.Adam(
            self.parameters(), config.learning_rate, (config.beta1, config.beta2), fused=True
        )
        factor = exponential_decay(config.learning_rate_decay)
        loss = self.likelihood_loss
        return (Phase("likelihood", self, adam, loss, learning_rate_factor=factor),)

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mixture parameters of each pixel; see models/parts/logistic.py."""
        numbers: Tensor = self.network(images, self._labels(labels))
        return numbers

    def cached_outputs(self, num_images: int, labels: Tensor | None = None) -> PixelOutputs:
        """Compute one pixel per call, from cached activations."""
        return self.network.newest(self._labels(labels))

    def log_likelihood(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the log-likelihood in nats, (B,), under the discretised mixture."""
        return logistic.log_likelihood(outputs, images, self.config.levels)

    def pick(self, outputs: Tensor, uniforms: Tensor, pixel: Tensor, turn: int) -> Tensor:
        """Draw the component, then each colour given the previous ones."""
        return logistic.pick(outputs, uniforms, pixel, self.config.levels)

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        if self.config.classes and labels is None:
            raise ValueError("pixelcnn_pp with classes needs labels, but the data set has none")
        return labels if self.config.classes else None


def exponential_decay(rate: float) -> Callable[[Clock], float]:
    """Return a learning-rate factor of ``rate`` to the power of the step."""
    return lambda clock: rate**clock.step
