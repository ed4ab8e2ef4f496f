"""Convolutions that see earlier pixels and colours alone.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", 2016, section 3.4,
https://arxiv.org/abs/1601.06759. Every channel belongs to a colour. At the centre of the kernel,
mask A lets a channel of colour c see colours before c, mask B also c itself.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def colours_of(num_features: int, num_colours: int) -> Tensor:
    """The colour of each of ``num_features`` hidden channels, in turn: int64 (num_features,)."""
    return torch.arange(num_features) % num_colours


def colours_of_logits(num_colours: int, levels: int) -> Tensor:
    """The colour of each of num_colours * levels logits, those of a colour in a row."""
    return torch.arange(num_colours).repeat_interleave(levels)


class MaskedConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the size of the map, with a mask on its weight.

    The mask is applied in the forward pass, so no gradient reaches a masked weight.
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
        """``colours_in`` and ``colours_out`` give the colour of each channel; kernels are odd."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2)
        super().__init__(
            len(colours_in), len(colours_out), (height, width), padding=padding, bias=bias
        )
        into, out = colours_in[None, :].cpu(), colours_out[:, None].cpu()
        mask = torch.zeros(self.weight.shape, device="cpu")
        mask[:, :, : height // 2] = 1
        mask[:, :, height // 2, : width // 2] = 1
        mask[:, :, height // 2, width // 2] = (into < out if kind == "A" else into <= out).float()
        self.register_buffer("mask", mask.to(self.weight.device), persistent=False)

    @property
    def masked_weight(self) -> Tensor:
        """The weight with zeros where the mask is zero."""
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.conv2d(input, self.masked_weight, self.bias, padding=self.padding)
