"""A model's sampler as a module to export, and what goes in and out of it.

Inputs are ``seeds`` and, unless the model draws from noise alone, ``condition``; the output is
``images``. With the kind ``uint8``, images are levels from 0 to 255 on both sides.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from orchestrator.models.base import GenerativeModel, ModelConfig
from orchestrator.models.parts.text import CAPTION_BYTES

Kind: TypeAlias = Literal["float", "uint8"]
"""Type of the images that an exported model takes and draws."""
BATCH = "batch"
"""Stands for the number of images in a shape."""
LARGEST_SEED = 2**53 - 1
"""Any int64 is a seed; up to here every client, JavaScript too, counts exactly."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an exported model."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    range: tuple[int, int]
    """Smallest and largest value."""


class ExportedSampler(nn.Module):
    """seeds_B int64, condition -> images_BCHW; see ``GenerativeModel.sampler``.

    With ``uint8``, images to translate and drawn images are uint8, rounded as those that
    `orchestrator sample` writes.
    """

    def __init__(self, model: GenerativeModel, kind: Kind) -> None:
        super().__init__()
        self.sampler, self.kind = model.sampler(), kind
        self.translates = model.config.translates

    def forward(self, seeds: Tensor, condition: Tensor | None = None) -> Tensor:
        """Draw the images."""
        if self.kind == "float":
            images: Tensor = self.sampler(seeds, condition)
            return images
        if condition is not None and self.translates:
            condition = from_levels(condition)
        return to_levels(self.sampler(seeds, condition))


def to_levels(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to uint8 levels from 0 to 255."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """Convert uint8 levels to float32 in [-1, 1]."""
    return levels.float() / 127.5 - 1


def inputs_of(config: ModelConfig, kind: Kind) -> tuple[TensorInfo, ...]:
    """Return the inputs of an exported model, in order."""
    seeds = TensorInfo("seeds", "int64", (BATCH,), (0, LARGEST_SEED))
    if config.translates:
        return seeds, _images("condition", config, kind)
    if "captions" in config.takes:
        return seeds, TensorInfo("condition", "uint8", (BATCH, CAPTION_BYTES), (0, 255))
    if config.num_classes:
        return seeds, TensorInfo("condition", "int64", (BATCH,), (0, config.num_classes - 1))
    return (seeds,)


def output_of(config: ModelConfig, kind: Kind) -> TensorInfo:
    """Return the output of an exported model."""
    return _images("images", config, kind)


def _images(name: str, config: ModelConfig, kind: Kind) -> TensorInfo:
    shape = (BATCH, config.channels, config.image_size, config.image_size)
    if kind == "uint8":
        return TensorInfo(name, "uint8", shape, (0, 255))
    return TensorInfo(name, "float32", shape, (-1, 1))


def random_seeds(count: int, generator: torch.Generator) -> Tensor:
    """Return seeds of all sizes, from 0 on: int64 (B,)."""
    seeds = torch.randint(LARGEST_SEED, (count,), generator=generator)
    seeds[::2] = torch.arange(len(seeds[::2]))
    return seeds


def random_condition(config: ModelConfig, count: int, generator: torch.Generator) -> Tensor | None:
    """Return a random condition for ``GenerativeModel.sample``; images have 256 levels."""
    if config.translates:
        shape = (count, config.channels, config.image_size, config.image_size)
        return from_levels(torch.randint(256, shape, generator=generator))
    if "captions" in config.takes:
        text = torch.randint(256, (count, CAPTION_BYTES), generator=generator)
        lengths = torch.randint(CAPTION_BYTES + 1, (count, 1), generator=generator)
        return torch.where(torch.arange(CAPTION_BYTES) < lengths, text, 0).to(torch.uint8)
    if config.num_classes:
        return torch.randint(config.num_classes, (count,), generator=generator)
    return None


def as_given(config: ModelConfig, condition: Tensor | None, kind: Kind) -> Tensor | None:
    """Convert a condition for ``GenerativeModel.sample`` to that of an exported model."""
    if condition is not None and kind == "uint8" and config.translates:
        return to_levels(condition)
    return condition
