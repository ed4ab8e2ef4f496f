"""Masked convolutions, which see only earlier pixels and colours.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016, section 3.4,
https://arxiv.org/abs/1601.06759. Every channel belongs to a colour. At the centre of the kernel, a
channel of colour c sees the colours before c with mask A, and also c itself with mask B.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def colours_of(num_features: int, num_colours: int) -> Tensor:
    """Assign colours to hidden channels cyclically: int64 (num_features,)."""
    return torch.arange(num_features, device="cpu") % num_colours


def colours_of_logits(num_colours: int, levels: int) -> Tensor:
    """Return the colour of each of num_colours * levels logits, grouped by colour."""
    return torch.arange(num_colours, device="cpu").repeat_interleave(levels)


class MaskedConv2d(nn.Conv2d):
    """A size-preserving convolution with a mask on its weight.

    The mask is applied in the forward pass, so masked weights get no gradient.
    """

    mask: Tensor

    def __init__(
        self,
        kind: Literal["A", "B"],
        colours_in: Tensor,
        colours_out: Tensor,
        kernel: int | tuple[int, int] = 1,
        *,
        bias: bool = True,
    ) -> None:
        """``colours_in`` and ``colours_out`` are the colours of the channels; kernels are odd."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2)
        super().__init__(
            len(colours_in), len(colours_out), (height, width), padding=padding, bias=bias
        )
        into, out = colours_in[None, :], colours_out[:, None]
        mask = torch.zeros(self.weight.shape, device="cpu")
        mask[:, :, : height // 2] = 1
        mask[:, :, height // 2, : width // 2] = 1
        mask[:, :, height // 2, width // 2] = (into < out if kind == "A" else into <= out).float()
        self.register_buffer("mask", mask.to(self.weight.device), persistent=False)

    @property
    def masked_weight(self) -> Tensor:
        """Return the weight multiplied by the mask."""
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.conv2d(input, self.masked_weight, self.bias, padding=self.padding)


class NewestPixel:
    """Incremental evaluation of a masked convolution, pixel by pixel.

    Caches as many input rows as the kernel is high. The contribution of the rows above is computed
    once per row, so a pixel costs one matrix product with (B, taps * C).
    """

    def __init__(
        self, size: tuple[int, int], left: Tensor, bias: Tensor | None, above: Tensor | None = None
    ) -> None:
        """Start before the first row.

        Args:
            size: B and W, number of images and width of the map.
            left: weight (C', C, taps) of the pixels to the left, in order, and the pixel itself.
            bias: (C',).
            above: weight (C', C, rows, 2 * taps - 1) of the rows above, or None.
        """
        out, channels, taps = left.shape
        self.above, self.taps = above, taps
        self.left = left.permute(2, 1, 0).reshape(taps * channels, out)
        self.bias = left.new_zeros(out) if bias is None else bias
        rows = 1 if above is None else 1 + above.shape[2]
        self.inputs_BHWC = left.new_zeros(size[0], rows, size[1] + 2 * (taps - 1), channels)

    @classmethod
    def of(cls, conv: MaskedConv2d, size: tuple[int, int]) -> "NewestPixel":
        """Wrap ``conv``, whose kernel must be square."""
        weight, middle = conv.masked_weight, conv.weight.shape[2] // 2
        left = weight[:, :, middle, : middle + 1]
        return cls(size, left, conv.bias, weight[:, :, :middle])

    def start_row(self, added: Tensor | None = None) -> None:
        """Start the next row; ``added`` (B, W, C') is added to its outputs."""
        inputs_BHWC = self.inputs_BHWC.roll(-1, 1)
        inputs_BHWC[:, -1] = 0
        base = self.bias if added is None else self.bias + added
        if self.above is not None:
            rows_BCHW = inputs_BHWC[:, :-1].permute(0, 3, 1, 2)
            base = base + F.conv2d(rows_BCHW, self.above).squeeze(2).transpose(1, 2)
        self.inputs_BHWC, self.row_BWC, self.base_BWC = inputs_BHWC, inputs_BHWC[:, -1], base

    def __call__(self, x: Tensor, column: int) -> Tensor:
        """(B, C) of the pixel in this column -> (B, C'); call again if ``x`` changes."""
        self.keep(x, column)
        patch = self.row_BWC[:, column : column + self.taps].flatten(1)
        return torch.addmm(self.base_BWC[:, column], patch, self.left)

    def keep(self, x: Tensor, column: int) -> None:
        """Store the input (B, C) of this column."""
        self.row_BWC[:, column + self.taps - 1] = x

    def keep_drawn(self, images: Tensor, row: int, column: int) -> None:
        """Store the previous pixel of ``images``, whose colours were drawn after its own turn."""
        if column > 0:
            self.keep(images[:, :, row, column - 1], column - 1)
        elif row > 0:
            self.keep(images[:, :, row - 1, -1], images.shape[3] - 1)


def at_pixel(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Return a 1x1 convolution as a function of one pixel: (B, C) -> (B, C')."""
    weight = conv.masked_weight if isinstance(conv, MaskedConv2d) else conv.weight
    bias, matrix = conv.bias, weight.flatten(1)
    return lambda x: F.linear(x, matrix, bias)


def masked_head(features: Sequence[int], num_colours: int, logits: int) -> nn.Sequential:
    """Build ReLU and 1x1 convolutions through ``features`` to the logits.

    (B, features[0], H, W) -> (B, num_colours * logits, H, W), grouped by colour.
    """
    colours = [colours_of(count, num_colours) for count in features]
    colours.append(colours_of_logits(num_colours, logits))
    layers: list[nn.Module] = []
    for into, out in pairwise(colours):
        layers += [nn.ReLU(), MaskedConv2d("B", into, out)]
    return nn.Sequential(*layers)


def head_at_pixel(head: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """Return ``masked_head`` as a function of one pixel: (B, C) -> (B, C')."""
    layers = [at_pixel(conv) for conv in head if isinstance(conv, MaskedConv2d)]

    def outputs(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x.relu())
        return x

    return outputs
