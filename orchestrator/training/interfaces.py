"""Interfaces between the training loop and its process, its data and its surroundings."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from orchestrator.models.base import Batch
from orchestrator.training.state import TrainState

DATA = "waiting for data"
STEP = "training"
"""Activity of a worker during a step, in which all ranks wait for each other."""


class Stream(Protocol):
    """Data of one worker."""

    @property
    def num_samples(self) -> int:
        """Images in the training set: the length of an epoch."""

    def training(self, start: int) -> Generator[Batch, None, None]:
        """Yield this worker's shares of the batches from the ``start``-th image on, endlessly."""

    def validation(self) -> Iterator[Batch]:
        """Yield this worker's share of the validation set, once, in a fixed order; may be empty."""

    def examples(self, count: int) -> Batch:
        """Return ``count`` fixed samples for pictures, the same on every worker."""

    def counts(self) -> Mapping[str, float]:
        """Return what this worker has read and waited for so far; the same keys on every worker.

        The keys are ``bytes_read``, ``retries``, ``cache_hits``, ``cache_misses``,
        ``corrupt_samples`` and ``read_wait_s``; data_monitor.py turns them into metrics.
        """

    def corrupt_samples(self) -> Sequence[str]:
        """Return a line for each corrupt sample that this worker has met so far."""


class Recorder(Protocol):
    """Log of a run. Only rank 0 calls it; no call may wait for a network."""

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Log one point of each metric at ``images_seen``."""

    def log_grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        """Log a grid of images, each (C, H, W) in [-1, 1]."""

    def log_text(self, name: str, text: str, images_seen: int) -> None:
        """Log a text file called ``name``; it replaces an earlier one."""


class Stateful(Protocol):
    """A part of a run whose state is saved in each checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as values that JSON can hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an empty mapping means the start of a run."""


class CheckpointStore(Protocol):
    """Checkpoints of one run."""

    def save(self, state: TrainState) -> None:
        """Start to commit a checkpoint, perhaps in the background; only rank 0 calls it.

        The state's tensors may change as soon as this returns.
        """

    def flush(self) -> None:
        """Wait until every saved checkpoint is committed; only rank 0 calls it."""

    def latest(self) -> TrainState | None:
        """Load the newest valid checkpoint; None if there is none.

        Every rank calls it, at the start and before a rollback.
        """


@dataclass(frozen=True)
class Worker:
    """One process of a run, as the loop sees it."""

    recorder: Recorder
    checkpoints: CheckpointStore
    device: torch.device
    rank: int = 0
    world_size: int = 1
    should_stop: Callable[[], bool] = lambda: False
    """Called before each step; all ranks stop if it is true on one of them."""
    on_activity: Callable[[str], None] = lambda activity: None
    """Called with what the worker does next, such as ``STEP``; it shows where a rank hangs."""
    on_ddp: Callable[[DistributedDataParallel], None] = lambda wrapped: None
    """Called with each module that averages gradients, before the first step: see profiler.py."""
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    """More parts to save in checkpoints, by name. Only rank 0's are saved and restored."""


class NullRecorder:
    """A recorder that drops everything: that of every rank but the first."""

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Drop the points."""

    def log_grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        """Drop the grid."""

    def log_text(self, name: str, text: str, images_seen: int) -> None:
        """Drop the text."""
