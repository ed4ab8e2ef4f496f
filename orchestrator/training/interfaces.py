"""What the loop asks of its process, its data and its surroundings."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from orchestrator.models.base import Batch
from orchestrator.training.state import TrainState

DATA = "waiting for data"
STEP = "training"
"""What a worker is doing in a step, in which all ranks wait for each other."""


class Stream(Protocol):
    """The data of one worker."""

    @property
    def num_samples(self) -> int:
        """Images in the training set: the length of an epoch."""

    def training(self, start: int) -> Generator[Batch, None, None]:
        """This worker's shares of the batches from the ``start``-th image on, without end."""

    def validation(self) -> Iterator[Batch]:
        """This worker's share of the validation set, once, in a fixed order; may be empty."""

    def examples(self, count: int) -> Batch:
        """``count`` fixed samples to look at, the same on every worker."""

    def counts(self) -> Mapping[str, float]:
        """What this worker has read and waited for so far; the same keys on every worker.

        watch.py says what it makes of ``bytes_read``, ``retries``, ``cache_hits``,
        ``cache_misses``, ``damaged`` and ``read_wait_s``.
        """

    def damaged(self) -> Sequence[str]:
        """A line for each damaged sample that this worker has met so far."""


class Recorder(Protocol):
    """Takes what the training has to tell. Rank 0 calls it; no call may wait for a network."""

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Points of curves at ``images_seen``."""

    def grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        """A picture: rows of images (C, H, W) in [-1, 1]."""

    def text(self, name: str, text: str, images_seen: int) -> None:
        """A text file called ``name``, in place of one that was recorded before."""

    def state(self) -> dict[str, Any]:
        """What another needs to go on in this one's place, fit for JSON; kept in checkpoints."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave; empty is the start of a training."""


class CheckpointStore(Protocol):
    """Keeps the states of one run."""

    def save(self, state: TrainState) -> None:
        """Commit a state, perhaps while the training goes on; rank 0 calls it.

        The state's tensors may change as soon as this returns.
        """

    def flush(self) -> None:
        """Wait until what was saved is committed; rank 0 calls it."""

    def latest(self) -> TrainState | None:
        """The newest whole state; None before the first. Every rank calls it, at the start and
        when the training goes back."""


@dataclass(frozen=True)
class Worker:
    """One process of a running job, as the loop sees it."""

    recorder: Recorder
    checkpoints: CheckpointStore
    device: torch.device
    rank: int = 0
    world_size: int = 1
    should_stop: Callable[[], bool] = lambda: False
    """Asked at each step; all ranks stop if one is told to."""
    doing: Callable[[str], None] = lambda what: None
    """Told what comes next: ``STEP`` or other words. By it a rank that is stuck is found."""
    averages: Callable[[DistributedDataParallel], None] = lambda wrapped: None
    """Given what averages gradients, before the first step: see stopwatch.py."""


class Silence:
    """A recorder that records nothing: that of every rank but the first."""

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Record nothing."""

    def grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        """Record nothing."""

    def text(self, name: str, text: str, images_seen: int) -> None:
        """Record nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Need nothing."""
