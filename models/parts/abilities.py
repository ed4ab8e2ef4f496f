"""What some models can do besides drawing images: protocols that a model's class may fulfil."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from orchestrator.models.base import Batch


@runtime_checkable
class Reconstructs(Protocol):
    """A model that encodes and decodes images."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode ``images``, (B, C, H, W) in [-1, 1]; deterministic."""


@runtime_checkable
class HasLatents(Protocol):
    """A model that decodes an image from a vector: ``draw`` decodes the vectors of its seeds."""

    def latents(self, seeds: Tensor) -> Tensor:
        """Return the vector of each seed, float32 (B, Z)."""

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Decode vectors (B, Z) to images (B, C, H, W) in [-1, 1]; deterministic.

        The condition is that of ``GenerativeModel.draw``, as are the modes of the networks.
        """


@runtime_checkable
class FillsHole(Protocol):
    """A model that draws a square hole in the middle of the images that it translates."""

    hole: slice
    """Its rows, and its columns."""


@runtime_checkable
class DrawsRows(Protocol):
    """A model that draws images from the top down."""

    def draw_rows(self, seeds: Tensor, condition: Tensor | None) -> Iterator[Tensor]:
        """Yield the rows (B, C, W) of the images that ``draw`` returns, each when it is drawn.

        Arguments and modes of the networks are those of ``GenerativeModel.draw``.
        """


@runtime_checkable
class HasLikelihood(Protocol):
    """A model with an exact or bounded likelihood, from the weights of ``inference_module()``."""

    def negative_log_likelihood(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return nats per image, summed over its values, (B,) each, by name.

        ``nll_nats`` if exact, else the name of the bound, such as ``negative_elbo_nats``. Noise
        comes from ``batch.normal`` or ``batch.uniform``; dropout is off.
        """
