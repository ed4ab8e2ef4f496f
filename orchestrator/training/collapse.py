"""Measures how much samples differ, and acts on the signs of a collapse."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.config.job import GuardSection
from orchestrator.errors import Collapsed
from orchestrator.models.base import GenerativeModel
from orchestrator.training.divergence import DIVERSITY, CollapseDetector
from orchestrator.training.interfaces import Stream, Worker

NUM_TO_COMPARE = 64
"""Real images that the samples are compared with."""

logger = logging.getLogger(__name__)


class CollapseGuard:
    """Warns of each sign once, or stops the training; every rank makes each call."""

    def __init__(
        self, settings: GuardSection, model: GenerativeModel, stream: Stream, worker: Worker
    ) -> None:
        self._settings, self._stream, self._worker = settings, stream, worker
        stretch = settings.collapse_patience or stream.num_samples
        self._watch = CollapseDetector(model.signs_of_collapse, stretch)
        self._spread_of_real: float | None = None

    def record(self, values: Mapping[str, float], images_seen: int) -> None:
        """Record metrics, which are the same on all ranks, with what they say of a collapse.

        Raises:
            Collapsed: there is a sign, and guard.collapse is stop.
        """
        signs = [] if self._settings.collapse == "off" else self._watch.see(values, images_seen)
        if self._worker.rank == 0:
            on = {} if self._settings.collapse == "off" else {"guard/collapse": self._watch.on}
            self._worker.recorder.metrics({**values, **on}, images_seen)
        if signs and self._settings.collapse == "stop":
            raise Collapsed(f"after {images_seen:,} images {'; '.join(signs)}")
        if self._worker.rank == 0:
            for sign in signs:
                logger.warning("after %s images %s", f"{images_seen:,}", sign)

    def measure(self, samples: Tensor | None, images_seen: int) -> None:
        """Record how much the samples of rank 0 differ; None on other ranks, or if there are none.

        Raises as ``record`` does.
        """
        ratio = torch.full((), math.nan, device=self._worker.device)
        if samples is not None and (real := self._of_the_data()) > 0:
            ratio.fill_(spread(samples) / real)
        if self._worker.world_size > 1:  # so that all ranks stop, or none
            dist.broadcast(ratio, src=0)
        if math.isfinite(value := ratio.item()):
            self.record({DIVERSITY: value}, images_seen)

    def _of_the_data(self) -> float:
        if self._spread_of_real is None:
            self._spread_of_real = spread(self._stream.examples(NUM_TO_COMPARE).images)
        return self._spread_of_real

    def state(self) -> dict[str, Any]:
        """What it remembers, fit for JSON."""
        return self._watch.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._watch.load(state)


def spread(images: Tensor) -> float:
    """How much (N, C, H, W) images differ: the mean over pixels of the standard deviation."""
    return float(images.float().std(0, correction=0).mean())
