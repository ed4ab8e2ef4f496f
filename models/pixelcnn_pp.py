"""PixelCNN++: an autoregressive model that gives whole pixels as mixtures of logistics.

Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications", ICLR 2017, https://arxiv.org/abs/1701.05517. Followed:
the likelihood and the link between colours (sections 2.1 and 2.2, equations 1 to 3; in
models/parts/logistic.py), the network at several scales with long and short skip connections
(sections 2.3 and 2.4), dropout (2.5), Adam and its learning rate (section 3 and the authors' code),
and weight normalisation initialised from data (models/parts/weight_norm.py).

Two streams see earlier pixels by shifting: a vertical one all rows above, a horizontal one also
the pixels at the left in its row. Each goes down to ever coarser maps (the encoder) and back up
(the decoder), through gated residual layers. The horizontal stream reads the vertical one.

Sampling keeps what later pixels need (Ramachandran et al., "Fast Generation for Convolutional
Autoregressive Models", 2017, https://arxiv.org/abs/1704.06001): the vertical stream runs once for
a row, the horizontal one once for a pixel, coarser maps where a new place of them begins. Up to
rounding errors that gives what a pass over the whole image gives.

The weights that the paper reports are Polyak averages: ``train.ema_decay: 0.9995``.

Departures:
- The loss is a mean over images and values; the authors' is a sum, which Adam makes up for.
- The initialisation from data runs without dropout, so that it is the same on every worker.
- See models/parts/logistic.py for the likelihood of narrow logistics.

Dimensions: see models/base.py and models/parts/logistic.py. F: filters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, final

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.models.base import Batch, Clock, Input, ModelConfig, Phase, evaluating
from orchestrator.models.parts import logistic
from orchestrator.models.parts.autoregressive import (
    LIKELIHOOD_METRICS,
    Autoregressive,
    PixelOutputs,
)
from orchestrator.models.parts.weight_norm import (
    Conv2d,
    ConvTranspose2d,
    Newest,
    WholeMaps,
    initialise_from_data,
)

METRICS = LIKELIHOOD_METRICS


class Config(ModelConfig):
    """Hyperparameters of PixelCNN++; the defaults are the paper's for CIFAR-10."""

    image_size: PositiveInt = 32
    """Height and width of the images in pixels: a multiple of 2 to the power of (scales - 1)."""
    levels: int = Field(default=256, ge=2, le=256)
    """Values that a colour can have: 256, or 2 for binary images."""
    scales: PositiveInt = Field(default=3, validate_default=True)
    """Sizes of map, each half as high and wide as the one before; 1 stays at the image's size."""
    resnets: PositiveInt = 5
    """Gated residual layers at each scale, on the way down and on the way up."""
    filters: PositiveInt = 160
    """Channels of all maps."""
    mixtures: PositiveInt = 10
    """Logistics in the mixture that describes a pixel."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of activations dropped in each residual layer in training."""
    classes: NonNegativeInt = 0
    """Classes to condition on; 0: none, and labels are not needed."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's learning rate at the start."""
    learning_rate_decay: float = Field(default=0.999995, gt=0, le=1)
    """Factor on the learning rate after each step."""
    beta1: float = Field(default=0.95, ge=0, lt=1)
    """Adam's decay of the gradient's mean."""
    beta2: float = Field(default=0.9995, ge=0, lt=1)
    """Adam's decay of the gradient's square."""

    @property
    def takes(self) -> frozenset[Input]:
        """Labels, for a model with classes."""
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
            raise ValueError(f"needs an image_size that halves evenly; at {size} use 1 to {most}")
        return scales


class _Kind(NamedTuple):
    """What tells one stream from the other."""

    kernel: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Left, right, top and bottom: what shifts the kernel up, or up and left, of its pixel."""
    reads: int
    """Streams that it reads besides its own."""


VERTICAL = _Kind((2, 3), (1, 1, 1, 0), reads=0)
HORIZONTAL = _Kind((2, 2), (1, 0, 1, 0), reads=1)

_Conv: TypeAlias = Callable[[Conv2d, Tensor], Tensor]
Maps: TypeAlias = list[list[Tensor]]
"""For each scale, maps (B, F, H, W)."""


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, one after the other: (B, F, H, W) -> (B, 2F, H, W)."""
    return F.elu(torch.cat([x, -x], 1))


class _GatedResnet(nn.Module):
    """x + a s(b), with a and b from two convolutions; ``skips`` come in between the two."""

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
    """Encoder and decoder of one stream, with long skips from the one to the other."""

    encoder: Any  # lists of layers: torch's own types say Module of each
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
        """The outputs of all residual layers, for each scale in the order in which they run.

        Args:
            x: (B, F, H, W) at the finest scale.
            read: what this method gave for the stream that this one reads.
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
            if scale < len(
                self.shrink
            ):  # even where no coarser map is run: it must see every place
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
    """Images (B, C, H, W) -> numbers (B, P, H, W) for each pixel, from earlier pixels alone."""

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
        """What ``forward`` gives, for one pixel after the other."""
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
    """A channel of ones after the colours tells the image from the zeros around it."""
    return F.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)


@final
class Model(Autoregressive):
    """Draws whole pixels, in one turn each."""

    config: Config
    images_to_prepare = 32

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.uniforms = 1 + config.channels
        self.network = _Network(config)

    def prepare(self, examples: Batch) -> None:
        """Initialise gains and biases: each layer's output has mean 0 over ``examples``."""
        with evaluating(self):
            initialise_from_data(self, lambda: self.outputs(examples.images, examples.labels))

    def phases(self) -> tuple[Phase, ...]:
        """One: the likelihood."""
        config = self.config
        adam = torch.optim.Adam(
            self.parameters(), config.learning_rate, (config.beta1, config.beta2), fused=True
        )
        factor = exponential_decay(config.learning_rate_decay)
        loss = self.likelihood_loss
        return (Phase("likelihood", self, adam, loss, learning_rate_factor=factor),)

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits, means, log-scales and coefficients for each pixel; see models/parts/logistic."""
        numbers: Tensor = self.network(images, self._labels(labels))
        return numbers

    def cached_outputs(self, num_images: int, labels: Tensor | None = None) -> PixelOutputs:
        """As ``outputs``, at the cost of what is new in each pixel."""
        return self.network.newest(self._labels(labels))

    def log_likelihood(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Nats (B,) under the mixture of discretised logistics."""
        return logistic.log_likelihood(outputs, images, self.config.levels)

    def pick(self, outputs: Tensor, uniforms: Tensor, pixel: Tensor, turn: int) -> Tensor:
        """Draw the component, then each colour given the ones before it."""
        return logistic.pick(outputs, uniforms, pixel, self.config.levels)

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        if self.config.classes and labels is None:
            raise ValueError("pixelcnn_pp with classes needs labels: the data set gives none")
        return labels if self.config.classes else None


def exponential_decay(rate: float) -> Callable[[Clock], float]:
    """Learning-rate factor: ``rate`` to the power of the steps done."""
    return lambda clock: rate**clock.step
