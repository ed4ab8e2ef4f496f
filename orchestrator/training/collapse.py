"""Detects from metrics that a generator has collapsed, or that one network has won for good."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.models.base import Sign
from orchestrator.training.interfaces import Stream, Worker

DIVERSITY = "samples/diversity"
COLLAPSED = "samples/collapsed"
"""Logged with the diversity: 1 if the samples are nearly one picture after the grace period."""
MIN_DIVERSITY = 0.1
MIN_POINTS = 10
"""A sign must hold at so many logs in a row at least: each log covers only one batch."""
NUM_REAL_IMAGES = 64
"""Real images whose standard deviation the samples' is compared with."""


class CollapseDetector:
    """Keeps track of the signs of a collapse.

    Low diversity, below a tenth of that of real images, counts at once if it was higher before.
    Many generators begin with images that are all alike; one that never was diverse has collapsed
    once it has seen ``grace_images``. A model's own signs must last.
    """

    def __init__(self, signs: Sequence[Sign], min_images: int, grace_images: int) -> None:
        """Build the detector of a run.

        Args:
            signs: the model's own.
            min_images: for how many images a model's sign must last.
            grace_images: until so many images, samples may be alike that never were diverse.
        """
        self._signs, self._min_images, self._grace_images = signs, min_images, grace_images
        self._since: dict[str, tuple[int, int]] = {}
        """For each sign that holds, the images seen at its first point and its number of points."""
        self._was_diverse = False
        self._active: set[str] = set()
        self._reported: set[str] = set()

    @property
    def is_collapsed(self) -> bool:
        """Whether there is a sign of collapse now."""
        return bool(self._active)

    @property
    def is_alike(self) -> bool:
        """Whether the newest samples are nearly one picture, and the grace period is over."""
        return DIVERSITY in self._active

    def update(self, metrics: Mapping[str, float], images_seen: int) -> list[str]:
        """Add new points; return a line for each sign that appears for the first time.

        A sign whose metrics are not among them stays as it is.
        """
        descriptions = {}
        for sign in self._signs:
            values = [metrics[name] for name in sign.metrics if name in metrics]
            if len(values) == len(sign.metrics):
                active = self._has_lasted(sign, min(values), images_seen)
                self._set_active(sign.name, active=active)
                descriptions[sign.name] = self._describe(sign, images_seen)
        if DIVERSITY in metrics:
            diverse = metrics[DIVERSITY] >= MIN_DIVERSITY
            self._was_diverse |= diverse
            judged = self._was_diverse or images_seen >= self._grace_images
            self._set_active(DIVERSITY, active=judged and not diverse)
            how = "fell to" if self._was_diverse else "was never above 0.1 and is"
            descriptions[DIVERSITY] = (
                f"{DIVERSITY} {how} {metrics[DIVERSITY]:.3g}: the samples differ less than a "
                f"tenth as much as real images do, so the generator makes nearly one picture only"
            )
        new = sorted(self._active - self._reported)
        self._reported |= self._active
        return [descriptions[name] for name in new]

    def _has_lasted(self, sign: Sign, value: float, images_seen: int) -> bool:
        if value < sign.least:
            self._since.pop(sign.name, None)
            return False
        first, points = self._since.get(sign.name, (images_seen, 0))
        self._since[sign.name] = first, points + 1
        return points + 1 >= MIN_POINTS and images_seen - first >= self._min_images

    def _describe(self, sign: Sign, images_seen: int) -> str:
        first, _ = self._since.get(sign.name, (images_seen, 0))
        return (
            f"{' and '.join(sign.metrics)} at {sign.least:g} or above for "
            f"{images_seen - first:,} images: {sign.meaning}"
        )

    def _set_active(self, name: str, *, active: bool) -> None:
        self._active = self._active | {name} if active else self._active - {name}

    def state_dict(self) -> dict[str, Any]:
        """Return all that ``update`` depends on, as values that JSON can hold."""
        return {
            "since": {name: list(values) for name, values in self._since.items()},
            "was_diverse": self._was_diverse,
            "active": sorted(self._active),
            "reported": sorted(self._reported),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an empty mapping means the start of a run."""
        self._since = {name: (a, b) for name, (a, b) in state.get("since", {}).items()}
        self._was_diverse = state.get("was_diverse", False)
        self._active = set(state.get("active", ()))
        self._reported = set(state.get("reported", ()))


def default_grace_images(epoch: int, total_images: int) -> int:
    """Return one epoch, but at least a tenth and at most half of the training, in images."""
    return max(total_images // 10, min(epoch, total_images // 2))


class SampleDiversity:
    """Measures how much samples differ, relative to real images; every rank makes each call."""

    def __init__(self, stream: Stream, worker: Worker) -> None:
        self._stream, self._worker = stream, worker

    def measure(self, samples: Tensor | None) -> float | None:
        """Return the diversity of rank 0's samples, on every rank: 1 is that of real images.

        ``samples`` are (N, C, H, W); None on other ranks, and where there are none to measure. The
        result is None if nothing was measured, or if it is not finite.
        """
        ratio = torch.full((), torch.nan, device=self._worker.device)
        if samples is not None and (real := self._real_deviation) > 0:
            ratio.fill_(pixel_deviation(samples) / real)
        if self._worker.world_size > 1:  # so that all ranks stop, or none
            dist.broadcast(ratio, src=0)
        return ratio.item() if ratio.isfinite() else None

    @functools.cached_property
    def _real_deviation(self) -> float:
        return pixel_deviation(self._stream.examples(NUM_REAL_IMAGES).images)


def pixel_deviation(images: Tensor) -> float:
    """Mean over all pixels of the standard deviation over (N, C, H, W) images."""
    return float(images.float().std(0, correction=0).mean())
