"""Base of autoregressive models: order of values, likelihood and sampling.

p(x) is the product over all values of p(value | previous values): rows from the top, pixels from
the left, then the colours of a pixel (van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent
Neural Networks", 2016, equations 1 and 2, https://arxiv.org/abs/1601.06759).

Shape suffixes besides those of models/base.py:

    P: parameters of the distribution of one pixel     U: uniform numbers to draw a pixel
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from orchestrator.bounds import ImageSide, LearningRate
from orchestrator.models.base import (
    Batch,
    GenerativeModel,
    Loss,
    ModelConfig,
    Phase,
    Shared,
)
from orchestrator.models.parts import noise
from orchestrator.models.parts.sampler import Sampler, evaluating

PixelOutputs: TypeAlias = Callable[[Tensor, int, int, int], Tensor]
"""(images_BCHW, row, column, turn) -> outputs_BP of that pixel, given all earlier values."""


LIKELIHOOD_METRICS = {
    "likelihood/nll_nats": "Exact negative log-likelihood of a training image in nats, summed over "
    "its values; falls. A value far below validation/nll_nats indicates overfitting.",
    "likelihood/bits_per_dim": "The same in bits per value: nats / (values ln 2). It starts near "
    "log2(levels), the cost of guessing (8 for 256 levels, 1 for binary images), and falls.",
}
"""METRICS of models whose only phase is ``likelihood``."""


class Autoregressive(GenerativeModel):
    """Base class of autoregressive models.

    Subclasses define ``outputs``, ``cached_outputs``, ``log_likelihood`` and ``pick``.
    """

    not_exported = "it draws value by value, so a program is as long as an image has values"
    turns: int = 1
    """Forward passes per pixel: one per colour if colours depend on each other through the
    network."""
    uniforms: int = 1
    """Uniform numbers that ``pick`` needs per turn."""

    @abstractmethod
    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return outputs (B, P, H, W) of all pixels, each computed from earlier values only."""

    @abstractmethod
    def cached_outputs(self, num_images: int, labels: Tensor | None = None) -> PixelOutputs:
        """Return a function that computes ``outputs`` one pixel at a time, in order.

        It caches the activations of earlier pixels.
        """

    @abstractmethod
    def log_likelihood(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return nats, (B,), of images (B, C, H, W) under outputs (B, P, H, W)."""

    @abstractmethod
    def pick(self, outputs: Tensor, uniforms: Tensor, pixel: Tensor, turn: int) -> Tensor:
        """Draw a pixel, or its ``turn``-th colour.

        Args:
            outputs: (B, P) of this pixel.
            uniforms: (B, U) in (0, 1); equal numbers give equal pixels.
            pixel: (B, C) in [-1, 1], with the colours of earlier turns.

        Returns:
            ``pixel`` with the drawn values, (B, C) in [-1, 1].
        """

    def likelihood_loss(self, batch: Batch, shared: Shared) -> Loss:
        """Negative log-likelihood in nats per value; ``nll_nats`` is the sum over an image."""
        outputs = self.outputs(batch.images, batch.labels)
        nats = -self.log_likelihood(outputs.float(), batch.images).mean()
        values = batch.images[0].numel()
        bits = nats.detach() / (values * math.log(2))
        return Loss(nats / values, {"nll_nats": nats.detach(), "bits_per_dim": bits})

    def negative_log_likelihood(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the exact negative log-likelihood in nats, (B,)."""
        with evaluating(self):
            outputs = self.outputs(batch.images, batch.labels)
            return {"nll_nats": -self.log_likelihood(outputs.float(), batch.images)}

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Draw images pixel by pixel with cached activations."""
        return torch.stack(list(self.draw_rows(seeds, condition)), 2)

    def draw_rows(self, seeds: Tensor, condition: Tensor | None) -> Iterator[Tensor]:
        """Yield each row, (B, C, W), when it is drawn; see ``DrawsRows``."""
        return self._drawn_rows(self.cached_outputs(len(seeds), condition), seeds)

    def sample_naively(self, seeds: Tensor, condition: Tensor | None = None) -> Tensor:
        """Like ``sample``, but with a forward pass over the whole image for each turn."""

        def draw(seeds: Tensor, labels: Tensor | None) -> Tensor:
            rows = self._drawn_rows(lambda x, i, j, _: self.outputs(x, labels)[:, :, i, j], seeds)
            return torch.stack(list(rows), 2)

        images: Tensor = Sampler(self, draw, self.config.num_classes)(seeds, condition)
        return images

    def _drawn_rows(self, outputs: PixelOutputs, seeds: Tensor) -> Iterator[Tensor]:
        """Draw each pixel from its outputs with uniform numbers that belong to the seed."""
        size = self.config.image_size
        images = torch.zeros(len(seeds), self.config.channels, size, size, device=seeds.device)
        for i in range(size):
            uniforms = noise.uniform(seeds, f"row {i}", (size, self.turns, self.uniforms))
            for j in range(size):
                for turn in range(self.turns):
                    given = outputs(images, i, j, turn).float()
                    pixel = images[:, :, i, j]
                    images[:, :, i, j] = self.pick(given, uniforms[:, j, turn], pixel, turn)
            yield images[:, :, i]


def to_levels(images: Tensor, levels: int) -> Tensor:
    """Quantise images in [-1, 1] to integers 0 .. levels - 1: int64, same shape."""
    return ((images + 1) * ((levels - 1) / 2)).round().long()


def from_levels(values: Tensor, levels: int) -> Tensor:
    """Invert ``to_levels``: float32 in [-1, 1]."""
    return values * (2 / (levels - 1)) - 1


def logits_for_colour(levels: int) -> int:
    """Return the number of logits per colour: ``levels``, or 1 for two levels.

    A single logit is that of the upper level (a sigmoid); the lower level has logit 0.
    """
    return 1 if levels == 2 else levels


def softmax_log_likelihood(outputs: Tensor, images: Tensor, levels: int) -> Tensor:
    """Return nats, (B,), for logits (B, C * logits_for_colour, H, W), grouped by colour."""
    logits = _with_zero(outputs.unflatten(1, (images.shape[1], -1)).transpose(1, 2))
    nats = F.cross_entropy(logits, to_levels(images, levels), reduction="none")
    return -nats.flatten(1).sum(1)


def softmax_pick(outputs: Tensor, uniforms: Tensor, pixel: Tensor, turn: int) -> Tensor:
    """``Autoregressive.pick`` for logits (B, C * logits_for_colour), by inverse transform sampling.

    ``turn`` is the colour to draw.
    """
    logits = _with_zero(outputs.unflatten(1, (pixel.shape[1], -1))[:, turn])
    below = logits.softmax(1).cumsum(1)[:, :-1]
    drawn = pixel.clone()
    drawn[:, turn] = from_levels((uniforms >= below).sum(1), logits.shape[1])
    return drawn


def _with_zero(logits: Tensor) -> Tensor:
    """Expand a single logit to two: (B, L, ...) -> (B, max(L, 2), ...)."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


class SoftmaxConfig(ModelConfig):
    """Hyperparameters of models with a softmax per value."""

    image_size: ImageSide = 32
    """Height and width of the images in pixels."""
    levels: int = Field(default=256, ge=2, le=256)
    """Number of values of a colour: 256, or 2 for binary images."""
    learning_rate: LearningRate = 1e-3
    """RMSProp's learning rate."""


class SoftmaxAutoregressive(Autoregressive):
    """Draws one colour per turn from a softmax over its levels; trained with RMSProp.

    Subclasses define ``outputs`` and ``cached_outputs``: logits (B, C * logits_for_colour, ...).
    """

    config: SoftmaxConfig

    def __init__(self, config: SoftmaxConfig) -> None:
        super().__init__()
        self.config, self.turns = config, config.channels

    def phases(self) -> tuple[Phase, ...]:
        """One phase, the likelihood."""
        rmsprop = torch.optim.RMSprop(self.parameters(), self.config.learning_rate)
        return (Phase("likelihood", self, rmsprop, self.likelihood_loss),)

    def log_likelihood(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return nats, (B,), under the softmax of each value."""
        return softmax_log_likelihood(outputs, images, self.config.levels)

    def pick(self, outputs: Tensor, uniforms: Tensor, pixel: Tensor, turn: int) -> Tensor:
        """Draw the colour ``turn``."""
        return softmax_pick(outputs, uniforms, pixel, turn)
