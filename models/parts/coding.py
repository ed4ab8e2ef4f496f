"""Dense and convolutional encoders and decoders of autoencoding models.

The convolutional ones are a small design of our own: 4x4 convolutions of stride 2.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import BeforeValidator, Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from orchestrator.bounds import Filters, ImageChannels, ImageSide, LearningRate, Units
from orchestrator.models.base import ModelConfig

SMALLEST_MAP = 4
"""Smallest height and width of a map of a convolutional encoder, in pixels."""

Widths: TypeAlias = Annotated[
    tuple[Units, ...],
    Field(max_length=1_000),
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
]
"""Units per layer. Accepts lists, since YAML has no tuples and validation is strict."""


class CodingConfig(ModelConfig):
    """Hyperparameters of models with an encoder and a decoder."""

    image_size: ImageSide = 28
    """Height and width of the images in pixels."""
    channels: ImageChannels = 1
    """Channels of an image: 3 for colour, 1 for grey."""
    architecture: Literal["dense", "convolutional"] = "dense"
    """dense: fully connected layers of `hidden` units; convolutional: stride-2 convolutions."""
    hidden: Widths = (1000, 500, 250)
    """Units of the dense encoder's hidden layers, from image to code; the decoder mirrors them."""
    filters: Filters = 32
    """Channels of the outermost convolution; deeper ones have up to 8 times as many."""
    latent: Units = 30
    """Dimensions of a code."""
    learning_rate: LearningRate = 1e-3
    """Adam's learning rate."""

    @field_validator("architecture")
    @classmethod
    def _halves_twice(cls, architecture: str, info: ValidationInfo) -> str:
        size = info.data.get("image_size")
        if architecture == "convolutional" and size is not None and (size % 4 or size < 8):
            near = max(8, 4 * round(size / 4))
            raise ValueError(
                f"convolutional halves the image at least twice, which image_size {size} does not "
                f"allow; use dense, or image_size {near}"
            )
        return architecture


def map_sizes(image_size: int) -> list[int]:
    """Return the map sizes of a convolutional encoder, from the image inwards."""
    sizes = [image_size]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= SMALLEST_MAP:
        sizes.append(sizes[-1] // 2)
    return sizes


def encoder(config: CodingConfig, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Build an encoder (B, C, H, W) -> (B, outputs) with a linear output."""
    if config.architecture == "dense":
        widths = (config.channels * config.image_size**2, *config.hidden)
        hidden = _dense(widths, activation)
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], outputs))
    widths, smallest = _filters(config), map_sizes(config.image_size)[-1]
    layers: list[nn.Module] = []
    for cin, cout in pairwise(widths):
        layers += [nn.Conv2d(cin, cout, 4, 2, 1), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * smallest**2, outputs))


def decoder(config: CodingConfig, activation: type[nn.Module]) -> nn.Sequential:
    """Build a decoder (B, Z) -> (B, C, H, W), the mirror image, with a linear output."""
    shape = (config.channels, config.image_size, config.image_size)
    if config.architecture == "dense":
        widths = (config.latent, *reversed(config.hidden))
        last = nn.Linear(widths[-1], math.prod(shape))
        return nn.Sequential(*_dense(widths, activation), last, nn.Unflatten(1, shape))
    filters, smallest = _filters(config)[::-1], map_sizes(config.image_size)[-1]
    layers: list[nn.Module] = [
        nn.Linear(config.latent, filters[0] * smallest**2),
        nn.Unflatten(1, (filters[0], smallest, smallest)),
    ]
    for cin, cout in pairwise(filters):
        layers += [activation(), nn.ConvTranspose2d(cin, cout, 4, 2, 1)]
    return nn.Sequential(*layers)


def _dense(widths: tuple[int, ...], activation: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return layers


def _filters(config: CodingConfig) -> tuple[int, ...]:
    """Return the channels of each map, from the image inwards."""
    levels = len(map_sizes(config.image_size)) - 1
    return (config.channels, *(config.filters * min(2**level, 8) for level in range(levels)))


def at_least_float32(values: Tensor) -> Tensor:
    """Convert ``values`` to float32, but keep float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
