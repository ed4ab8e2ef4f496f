"""Arrange images in a grid of 8-bit pixels, and write PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

GAP = 2
"""White pixels around each image of a grid."""


def tile(rows: Sequence[Sequence[Tensor]]) -> NDArray[np.uint8]:
    """Return one image (H, W, 3) with a grid of all images, in rows of equal length.

    The images are float (C, H, W) in [-1, 1] with 1 or 3 channels, all of the same size.
    """
    (height, width), columns = rows[0][0].shape[-2:], len(rows[0])
    shape = (len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    grid = np.full(shape, 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        assert len(row) == columns, "all rows of a grid must have the same length"
        for j, image in enumerate(row):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            grid[top : top + height, left : left + width] = to_pixels(image)
    return grid


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """Convert an image (C, H, W) in [-1, 1] to 8-bit RGB pixels (H, W, 3)."""
    scaled = (image.detach().float().cpu() + 1) * 127.5
    pixels = scaled.round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def write_png(path: Path, pixels: NDArray[np.uint8], *, fast: bool = False) -> None:
    """Write ``pixels`` (H, W, 3) as PNG; ``fast`` takes a third of the time for a larger file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG", compress_level=1 if fast else 6)
