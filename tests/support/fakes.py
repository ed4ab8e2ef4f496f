"""Fakes for the surroundings of the training loop: data, checkpoints and recorder in memory."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.models.base import Batch
from orchestrator.training.state import TrainState


class MemoryStream:
    """Pairs of random images in a fixed cycle; the first four are the validation set."""

    def __init__(
        self, size: int = 16, num_samples: int = 12, batch: int = 4, rank: int = 0, world: int = 1
    ) -> None:
        noise = torch.Generator().manual_seed(1)
        shape = (num_samples, 3, size, size)
        self.condition = torch.rand(shape, generator=noise) * 2 - 1
        self.images = torch.rand(shape, generator=noise) * 2 - 1
        self.num_samples, self.batch, self.rank, self.world = num_samples, batch, rank, world

    def training(self, start: int) -> Generator[Batch, None, None]:
        while True:
            positions = torch.arange(start + self.rank, start + self.batch, self.world)
            yield self._at(positions)
            start += self.batch

    def validation(self) -> Iterator[Batch]:
        yield self._at(torch.arange(self.rank, 4, self.world))

    def examples(self, count: int) -> Batch:
        return self._at(torch.arange(min(count, self.num_samples)))

    def counts(self) -> dict[str, float]:
        names = (
            "bytes_read",
            "retries",
            "cache_hits",
            "cache_misses",
            "corrupt_samples",
            "read_wait_s",
        )
        return dict.fromkeys(names, 0.0)

    def corrupt_samples(self) -> list[str]:
        return []

    def _at(self, positions: Tensor) -> Batch:
        picks = positions % self.num_samples
        return Batch(self.images[picks], positions, self.condition[picks])


class MemoryCheckpoints:
    """Checkpoints in a list; every one is kept."""

    def __init__(self, states: Sequence[TrainState] = ()) -> None:
        self.states = list(states)

    def save(self, state: TrainState) -> None:
        self.states.append(deepcopy(state))

    def flush(self) -> None:
        pass

    def latest(self) -> TrainState | None:
        return deepcopy(self.states[-1]) if self.states else None


class ListRecorder:
    """Points and grids in lists."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.grids: list[tuple[int, list[list[Tensor]]]] = []
        self.texts: dict[str, str] = {}

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        self.points.append((images_seen, dict(values)))

    def log_grid(self, key: str, rows: Sequence[Sequence[Tensor]], images_seen: int) -> None:
        self.grids.append((images_seen, [list(row) for row in rows]))

    def log_text(self, name: str, text: str, images_seen: int) -> None:
        self.texts[name] = text

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(n, values[name]) for n, values in self.points if name in values]


def without_clock(point: Mapping[str, float]) -> dict[str, float]:
    """Remove the metrics that depend on the machine and on the number of workers."""
    timing = ("images_per_s", "data/", "cost/")
    return {name: value for name, value in point.items() if not name.startswith(timing)}


def small_job(model: Mapping[str, object] | None = None, /, **train: object) -> Job:
    """Return a job of pix2pix on 16-pixel images: a step takes milliseconds."""
    return Job.model_validate(
        {
            "name": "small",
            "model": {
                "name": "pix2pix",
                "image_size": 16,
                "filters": 4,
                "discriminator_filters": 4,
                "receptive_field": 16,
                "norm": "instance",
                **(model or {}),
            },
            "data": {"train": "unused"},
            "train": {"images": 24, "batch_size": 4, **train},
        },
        strict=True,
    )
