"""Folders of tiny images, for the tests of packing."""

from pathlib import Path

import numpy
from PIL import Image


def tiny(seed: int = 0, width: int = 4, height: int = 4) -> Image.Image:
    """Return an image of noise."""
    shape = (height, width, 3)
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, shape, numpy.uint8))


def write_images(folder: Path, *names: str, width: int = 4, height: int = 4) -> Path:
    """Write an image of its own for each name, such as train/cats/1.png; return the folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny(number, width, height).save(path, "PNG")
    return folder
