"""Gated PixelCNN: gated, class-conditional, and without the blind spot of PixelCNN.

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu, "Conditional Image Generation
with PixelCNN Decoders", NIPS 2016, https://arxiv.org/abs/1606.05328. As in the paper: the gated
unit and its class-conditional form (equations 2 and 4), the vertical and the horizontal stack and
their connection (section 2.2 and figure 2), the softmax and the colour groups of PixelCNN.

The vertical stack sees all rows above: its layers also see their own row, so their output is
shifted down by one row before it enters the horizontal stack, which sees the pixels to the left.
Only the horizontal stack has masks and, from its second layer on, residual connections.

Choices and departures:
- Only the first layer's horizontal convolution has mask A. With one colour the mask leaves nothing
  at the pixel itself, so the convolution has no weight there.
- The class embedding is added to both stacks of each layer, before the gates.
- The head is that of PixelCNN: ReLU and a 1x1 layer, twice.
- Depth, channels and learning rate are those of a public reproduction on MNIST (12 layers of 32
  channels, RMSProp at 1e-3, github.com/anantzoid/Conditional-PixelCNN-decoder), not the paper's.

Sampling runs the vertical stack once per row and the horizontal one once per pixel, with cached
activations (Ramachandran et al., "Fast Generation for Convolutional Autoregressive Models", 2017,
https://arxiv.org/abs/1704.06001).

Dimensions: see models/base.py and models/parts/autoregressive.py. D: channels.
"""

from collections.abc import Sequence
from typing import cast, final

import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Classes, Filters, KernelSide, Layers, Units
from orchestrator.models.base import Input
from orchestrator.models.parts.autoregressive import (
    LIKELIHOOD_METRICS,
    PixelOutputs,
    SoftmaxAutoregressive,
    SoftmaxConfig,
    logits_for_colour,
)
from orchestrator.models.parts.masked import (
    MaskedConv2d,
    NewestPixel,
    at_pixel,
    colours_of,
    head_at_pixel,
    masked_head,
)

METRICS = LIKELIHOOD_METRICS


class Config(SoftmaxConfig):
    """Hyperparameters of the Gated PixelCNN; the module docstring gives the source of defaults."""

    hidden: Filters = 32
    """Channels of each stack after the gate; twice as many before it."""
    layers: Layers = 12
    """Number of layers, each with both stacks."""
    first_kernel: KernelSide = 7
    """Kernel size of the first layer; odd."""
    kernel: KernelSide = 3
    """Kernel size of the other layers; odd."""
    head_width: Units = 32
    """Channels of the 1x1 layer before the logits."""
    classes: Classes = 0
    """Number of classes to condition on; 0: unconditional, labels are not needed."""

    @property
    def takes(self) -> frozenset[Input]:
        """Labels, if class-conditional."""
        return frozenset({"labels"}) if self.classes else frozenset()

    @property
    def num_classes(self) -> int:
        """``classes``."""
        return self.classes

    @field_validator("first_kernel", "kernel")
    @classmethod
    def _has_a_middle(cls, kernel: int) -> int:
        if kernel % 2 == 0 or kernel == 1:
            raise ValueError(f"must be odd and at least 3; use {max(3, kernel + 1)}")
        return kernel


class _LeftConv2d(nn.Conv2d):
    """A masked convolution along a row: it sees pixels to the left and earlier colours."""

    mask: Tensor

    def __init__(self, into: Tensor, out: Tensor, kernel: int, *, first: bool) -> None:
        """``into`` and ``out`` are the colours of the channels; ``first`` uses mask A."""
        colours = into[None] < out[:, None] if first else into[None] <= out[:, None]
        self.blind = first and int(into.numel()) == 1
        super().__init__(len(into), len(out), (1, kernel // 2 + (not self.blind)))
        mask = torch.ones(self.weight.shape, device="cpu")
        if not self.blind:
            mask[..., 0, -1] = colours.float()
        self.register_buffer("mask", mask.to(self.weight.device), persistent=False)

    @property
    def taps(self) -> Tensor:
        """Masked weights (D', D, taps) from left to right, the last for the pixel itself."""
        return F.pad((self.weight * self.mask).squeeze(2), (0, int(self.blind)))

    def forward(self, input: Tensor) -> Tensor:
        taps = self.taps
        return F.conv2d(F.pad(input, (taps.shape[2] - 1, 0)), taps[:, :, None], self.bias)


class _Layer(nn.Module):
    """One layer of both stacks: (B, D, H, W) each; the first takes (B, C, H, W)."""

    def __init__(self, config: Config, *, first: bool) -> None:
        super().__init__()
        colours, width = config.channels, config.hidden
        self.first, kernel = first, config.first_kernel if first else config.kernel
        into, out = colours_of(colours if first else width, colours), colours_of(width, colours)
        rows, margin = kernel // 2 + 1, kernel // 2
        self.vertical = nn.Conv2d(len(into), 2 * width, (rows, kernel), padding=(0, margin))
        self.horizontal = _LeftConv2d(into, out.repeat(2), kernel, first=first)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = MaskedConv2d("B", out, out)
        self.label = nn.Embedding(config.classes, 4 * width) if config.classes else None

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = self.vertical.kernel_size[0]
        of_v, of_h = self.biases(labels)
        v = self.vertical(F.pad(v, (0, 0, rows - 1, 0))) + of_v
        above = F.pad(v, (0, 0, 1, -1))
        y = self.out(_gate(self.horizontal(h) + self.link(above) + of_h))
        return _gate(v), y if self.first else h + y

    def biases(self, labels: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Return the class biases of the vertical and horizontal stack, (B, 2D, 1, 1) each."""
        if self.label is None or labels is None:
            return 0.0, 0.0
        of_v, of_h = self.label(labels)[:, :, None, None].chunk(2, 1)
        return of_v, of_h


def _gate(x: Tensor) -> Tensor:
    """Return tanh(first half of the channels) * sigmoid(second half) (equation 2)."""
    value, gate = x.chunk(2, 1)
    return value.tanh() * gate.sigmoid()


class _NewestLayer:
    """Incremental evaluation of a layer: row by row vertically, pixel by pixel horizontally."""

    def __init__(self, layer: _Layer, size: tuple[int, int], labels: Tensor | None) -> None:
        self.layer, (of_v, self.of_h) = layer, layer.biases(labels)
        self.of_v, weight = of_v, layer.vertical.weight
        rows = layer.vertical.kernel_size[0]
        self.rows_BCHW = weight.new_zeros(size[0], weight.shape[1], rows, size[1])
        self.above_BCHW = weight.new_zeros(size[0], weight.shape[0], 1, size[1])
        self.horizontal = NewestPixel(size, layer.horizontal.taps, layer.horizontal.bias)
        self.out = at_pixel(layer.out)

    def add_row(self, v: Tensor) -> Tensor:
        """Compute the next row of the vertical stack: (B, D, 1, W) -> (B, D, 1, W)."""
        self.rows_BCHW = torch.cat([self.rows_BCHW[:, :, 1:], v], 2)
        self.above_BCHW = self.layer.vertical(self.rows_BCHW) + self.of_v
        return _gate(self.above_BCHW)

    def start_row(self) -> None:
        """Start the row below the last one added."""
        added_BCHW = self.layer.link(self.above_BCHW) + self.of_h
        self.horizontal.start_row(added_BCHW.squeeze(2).transpose(1, 2))

    def __call__(self, h: Tensor, column: int) -> Tensor:
        """Compute the next pixel of the horizontal stack: (B, D) -> (B, D)."""
        y = self.out(_gate(self.horizontal(h, column)))
        return y if self.layer.first else h + y


@final
class Model(SoftmaxAutoregressive):
    """Both stacks and a head on the horizontal one; one turn per colour."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            _Layer(config, first=number == 0) for number in range(config.layers)
        )
        logits = logits_for_colour(config.levels)
        self.head = masked_head([config.hidden, config.head_width], config.channels, logits)

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, C * logits, H, W)."""
        labels, v, h = self._labels(labels), images, images
        for layer in self.layers:
            v, h = layer(v, h, labels)
        logits: Tensor = self.head(h)
        return logits

    def cached_outputs(self, num_images: int, labels: Tensor | None = None) -> PixelOutputs:
        """Compute one pixel per call, and one row of the vertical stack per row."""
        size, labels = (num_images, self.config.image_size), self._labels(labels)
        layers = [_NewestLayer(layer, size, labels) for layer in self._layers()]
        head = head_at_pixel(self.head)

        def outputs(images: Tensor, i: int, j: int, turn: int) -> Tensor:
            if turn == 0 and j == 0:
                v = images[:, :, i - 1 : i]
                for layer in layers:
                    v = layer.add_row(v) if i > 0 else v
                    layer.start_row()
            if turn == 0:
                layers[0].horizontal.keep_drawn(images, i, j)
            h = images[:, :, i, j]
            for layer in layers:
                h = layer(h, j)
            return head(h)

        return outputs

    def _layers(self) -> Sequence[_Layer]:
        return cast("Sequence[_Layer]", self.layers)

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        if self.config.classes and labels is None:
            raise ValueError("gated_pixelcnn with classes needs labels, but the data set has none")
        return labels if self.config.classes else None
