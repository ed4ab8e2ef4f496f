"""Weight-normalised convolutions with data-dependent initialisation and incremental evaluation.

Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of
Deep Neural Networks", NeurIPS 2016, https://arxiv.org/abs/1602.07868. A weight is
w = g v / ||v|| (equation 2), with a direction v and a gain g per output channel; g and the bias are
initialised so that on a few real images each output channel has mean 0 and a given variance
(equations 5 and 6).

Departure: a channel that hardly varies over those images keeps its gain.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_VARIANCE = 1e-6
"""A channel with less is treated as constant: scaling it up would amplify noise."""


class WeightNorm(nn.Module, ABC):
    """A layer with weight g v / ||v|| and a bias; g = 1 until ``initialise_from_data``."""

    output_dim: ClassVar[int]
    """Dimension of ``direction`` that indexes the output channels."""

    def __init__(self, shape: tuple[int, ...], init_scale: float) -> None:
        """``init_scale``: standard deviation of the output after ``initialise_from_data``."""
        super().__init__()
        self.init_scale = init_scale
        self.direction = nn.Parameter(torch.empty(shape))
        self.gain = nn.Parameter(torch.ones(shape[self.output_dim]))
        self.bias = nn.Parameter(torch.zeros(shape[self.output_dim]))
        nn.init.normal_(self.direction, 0, 0.05)

    @property
    def weight(self) -> Tensor:
        """Return g v / ||v||, in the shape of ``direction``."""
        others = [d for d in range(self.direction.dim()) if d != self.output_dim]
        norm = torch.linalg.vector_norm(self.direction, dim=others, keepdim=True)
        weight: Tensor = self.direction * (self.gain.view_as(norm) / norm)
        return weight

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""


class Conv2d(WeightNorm):
    """A convolution of the padded or cropped map."""

    output_dim = 0

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        *,
        stride: int = 1,
        init_scale: float = 1.0,
    ) -> None:
        """``padding``: zeros on the left, right, top and bottom; negative numbers crop."""
        super().__init__((channels_out, channels_in, *kernel), init_scale)
        self.kernel = kernel
        self.padding = padding
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), or half the size with stride 2."""
        window = F.pad(x, self.padding) if any(self.padding) else x
        return F.conv2d(window, self.weight, self.bias, self.stride)


class ConvTranspose2d(WeightNorm):
    """A transposed convolution that doubles height and width.

    Row 2i + a of the output depends only on row i, through row a of the kernel.
    """

    output_dim = 1

    def __init__(self, channels_in: int, channels_out: int, width: int) -> None:
        """The kernel is 2 by ``width``, where 3 blends neighbouring columns and 2 does not."""
        super().__init__((channels_in, channels_out, 2, width), 1.0)
        self.padding = (0, width - 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2 H, 2 W)."""
        return F.conv_transpose2d(x, self.weight, self.bias, 2, self.padding, self.padding)


def initialise_from_data(module: nn.Module, forward: Callable[[], object]) -> None:
    """Initialise gain and bias of each weight-normalised layer of ``module`` from ``forward``.

    Layers are initialised in execution order, each on the output of those before it.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, WeightNorm)]
    hooks = [layer.register_forward_hook(_standardise) for layer in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()


def _standardise(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
    assert isinstance(layer, WeightNorm)
    variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
    variance = torch.where(variance > LEAST_VARIANCE, variance, 1.0)
    scale = layer.init_scale * variance.rsqrt()
    layer.gain.mul_(scale)
    layer.bias.sub_(mean).mul_(scale)
    return (output - mean[:, None, None]) * scale[:, None, None]


class WholeMaps:
    """Runs layers on whole maps, in a network with ``scales`` scales."""

    def __init__(self, scales: int) -> None:
        self.scales = scales

    def conv(self, scale: int, layer: Conv2d, x: Tensor) -> Tensor:
        """Run the layer on ``x`` at ``scale``, where 0 is the finest."""
        output: Tensor = layer(x)
        return output

    def grow(self, scale: int, layer: ConvTranspose2d, x: Tensor) -> Tensor:
        """Run the layer on ``x`` at the next coarser scale; the output is at ``scale``."""
        output: Tensor = layer(x)
        return output


class Newest(WholeMaps):
    """Runs layers incrementally: ``x`` is only the newest row, or pixel, of each map.

    Caches two input rows of each layer with a kernel of height 2, and two output rows of each
    transposed convolution. ``scales`` is the number of maps, from the finest, with new values.
    """

    def __init__(self, size: int, *, whole_rows: bool) -> None:
        """``size``: height and width of the finest map. ``whole_rows``: rows instead of pixels."""
        super().__init__(0)
        self.size = size
        self.whole_rows = whole_rows
        self.row = self.column = 0
        self.kept: dict[WeightNorm, Tensor] = {}
        self.weights: dict[WeightNorm, tuple[Tensor, Tensor]] = {}

    def move(self, row: int, column: int, scales: int) -> None:
        """Move to a pixel of the finest of ``scales`` maps, or to the row that starts there."""
        self.row, self.column = row, column
        self.scales = next((s for s in range(1, scales) if (row | column) % 2**s), scales)

    def conv(self, scale: int, layer: Conv2d, x: Tensor) -> Tensor:
        """Run the layer on the new ``x`` and the cached rows."""
        return self.apply(layer, x if layer.kernel == (1, 1) else self._window(scale, layer, x))

    def apply(self, layer: Conv2d, window: Tensor) -> Tensor:
        """Run the layer on a window that holds its whole input."""
        weight, matrix = self._weight(layer)
        if window.shape[2:] == layer.kernel:  # one pixel: a matrix product is cheaper
            return F.linear(_flat(window), matrix, layer.bias)[:, :, None, None]
        return F.conv2d(window, weight, layer.bias, layer.stride)

    def grow(self, scale: int, layer: ConvTranspose2d, x: Tensor) -> Tensor:
        """Return the newest output; ``x`` is used only if the next scale has new values."""
        column = self.column >> scale
        if scale + 1 < self.scales:
            weight, _ = self._weight(layer)
            new = F.conv_transpose2d(x, weight, layer.bias, 2, layer.padding, layer.padding)
            if layer not in self.kept:
                self.kept[layer] = new.new_zeros(*new.shape[:3], self.size >> scale)
            self.kept[layer][..., column : column + new.shape[3]] = new
        row = self.kept[layer][:, :, (self.row >> scale) % 2, None]
        return row if self.whole_rows else row[..., column : column + 1]

    def _window(self, scale: int, layer: Conv2d, x: Tensor) -> Tensor:
        left, right, _, _ = layer.padding
        if layer not in self.kept:
            rows = x.new_zeros(*x.shape[:2], 2, left + (self.size >> scale) + right)
            self.kept[layer] = rows.contiguous(memory_format=torch.channels_last)
        rows, column = self.kept[layer], self.column >> scale
        if column == 0:
            rows[:, :, 0] = rows[:, :, 1]
        rows[:, :, 1:, left + column : left + column + x.shape[3]] = x
        return rows[..., column : left + column + x.shape[3] + right]

    def _weight(self, layer: WeightNorm) -> tuple[Tensor, Tensor]:
        """Return the weight, and the same as a matrix of outputs by inputs."""
        if layer not in self.weights:
            self.weights[layer] = layer.weight, _flat(layer.weight)
        return self.weights[layer]


def _flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W * C)."""
    return x.permute(0, 2, 3, 1).flatten(1)
