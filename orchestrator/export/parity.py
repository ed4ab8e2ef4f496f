"""Whether an exported model draws what the model draws: pure measurement on random and real inputs.

It compares what a user of the exported model gets, at several batch sizes, with the model's own
images; and the same image at several batch sizes with each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from orchestrator.errors import DataError, OrchestratorError
from orchestrator.export.exported_sampler import (
    Kind,
    as_given,
    random_condition,
    random_seeds,
    to_levels,
)
from orchestrator.models.base import GenerativeModel

Draw: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""An exported model: seeds (B,), condition -> images (B, C, H, W)."""
BATCH_SIZES = (1, 2, 5, 64)
MOST = BATCH_SIZES[-1]
"""Images that are compared, at random inputs, and at real ones."""
MOST_DIFFERENCE = 1e-4
"""Limit on the difference of float images in [-1, 1]; an 8-bit level is 7.8e-3."""
MOST_LEVELS, MOST_SHARE = 1, 1e-3
"""Limits on the difference of 8-bit values, and on the share of those that differ."""


class ParityFailed(OrchestratorError):
    """An exported model draws other images than the model; the message has the numbers."""

    exit_code = 5


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the model."""

    kind: Kind
    difference: float
    """Largest absolute difference of float images in [-1, 1]; 0 if the kind is uint8."""
    levels: int
    """Largest difference of 8-bit values."""
    share: float
    """Share of the 8-bit values that differ, from 0 to 1."""

    @property
    def holds(self) -> bool:
        """Whether the differences are within the limits; never if one is not finite."""
        if self.kind == "uint8":
            return self.levels <= MOST_LEVELS and self.share <= MOST_SHARE
        return self.difference <= MOST_DIFFERENCE

    def __str__(self) -> str:
        if self.kind == "uint8":
            return (
                f"{100 * self.share:.3g} % of the 8-bit values differ, by at most {self.levels} "
                f"(limits {100 * MOST_SHARE:g} % and {MOST_LEVELS})"
            )
        return f"largest difference {self.difference:.2g} (limit {MOST_DIFFERENCE:g})"


def measure_parity(
    model: GenerativeModel, draw: Draw, kind: Kind = "float", real: Tensor | None = None
) -> Parity:
    """Compare an exported model with the model that it was exported from, on the CPU.

    Args:
        model: the one that was exported.
        draw: the exported model.
        kind: of its images.
        real: conditions from a set, as ``GenerativeModel.sample`` takes them; also compared.

    Raises:
        DataError: the model draws values that are not finite.
        ParityFailed: the exported model fails at a batch size.
    """
    gaps, steps, different, values = [], [], 0, 0
    for drawn, expected in _pairs(model, draw, kind, real):
        if kind == "float":
            gaps.append((drawn.double() - expected.double()).abs().max())
        differences = (_levels(drawn, kind) - _levels(expected, kind)).abs()
        steps.append(int(differences.max()))
        different, values = different + int((differences > 0).sum()), values + drawn.numel()
    difference = float(torch.stack(gaps).max()) if gaps else 0.0  # NaN if one is
    return Parity(kind, difference, max(steps), different / values)


def _levels(images: Tensor, kind: Kind) -> Tensor:
    return (images if kind == "uint8" else to_levels(images)).int()


def _pairs(
    model: GenerativeModel, draw: Draw, kind: Kind, real: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images of the exported model, and what they should be."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    conditions = [random_condition(config, MOST, generator)]
    if real is not None:
        conditions.append(real[torch.arange(MOST) % len(real)])
    for condition in conditions:
        seeds = random_seeds(MOST, generator)
        expected = model.sample(seeds, condition)
        if not expected.isfinite().all():
            raise DataError(
                f"model {config.name} draws values that are not finite; export an earlier version, "
                "or train it again"
            )
        if kind == "uint8":
            expected = to_levels(expected)
        given = as_given(config, condition, kind)
        together = _drawn(draw, seeds, given, expected)
        yield together, expected
        for size in BATCH_SIZES[:-1]:  # the last rows, so that their places differ too
            alone = _drawn(
                draw,
                seeds[-size:],
                None if given is None else given[-size:],
                expected[-size:],
            )
            yield alone, expected[-size:]
            yield alone, together[-size:]


def _drawn(draw: Draw, seeds: Tensor, condition: Tensor | None, expected: Tensor) -> Tensor:
    """Draw with the exported model. Raises ParityFailed if it cannot, or draws something else."""
    try:
        images = draw(seeds, condition)
    except Exception as error:  # of any runtime
        reason = " ".join(str(error).split())[:200]
        raise ParityFailed(f"it fails at a batch of {len(seeds)}: {reason}") from error
    if images.shape != expected.shape or images.dtype != expected.dtype:
        raise ParityFailed(
            f"it gives {images.dtype} {tuple(images.shape)}, expected {expected.dtype} "
            f"{tuple(expected.shape)}"
        )
    return images
