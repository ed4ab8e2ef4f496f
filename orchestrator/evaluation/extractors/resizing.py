"""Resizing of images as the sources of the metrics do it: a difference here moves a distance."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ResizeMode = Literal["bicubic", "bilinear", "tensorflow"]
"""bicubic, bilinear: with antialiasing, as Pillow does; tensorflow: bilinear as TensorFlow 1, by
which FID is defined, without antialiasing and shifted by up to half a pixel."""


def resize(images: Tensor, size: int, mode: ResizeMode) -> Tensor:
    """Resize images (B, C, H, W) with values 0 to 255 to float32 (B, C, size, size).

    The whole image is kept: one that is not square is stretched. Overshoots are cut off.
    """
    images = images.float()
    if mode == "tensorflow":
        return _like_tensorflow(_like_tensorflow(images, size, 3), size, 2)
    scaled = F.interpolate(images, (size, size), mode=mode, antialias=True, align_corners=False)
    return scaled.clamp(0, 255)


def _like_tensorflow(images: Tensor, size: int, dim: int) -> Tensor:
    """Interpolate along one dimension: pixel i of the result is at i * (old / new) of the old."""
    old = images.shape[dim]
    # In float32, as TensorFlow does; float64 would choose other pixels where it rounds.
    place = torch.arange(size, dtype=torch.float32, device=images.device) * (old / size)
    below = place.long()
    above = (below + 1).clamp_max(old - 1)
    shape = [1, 1, 1, 1]
    shape[dim] = size
    low = images.index_select(dim, below)
    return low + (images.index_select(dim, above) - low) * (place - below).view(shape)
