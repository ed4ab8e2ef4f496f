"""Runs with a value that is not finite at a known position."""

from collections.abc import Callable, Generator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.models.base import Batch, GenerativeModel, ModelConfig, Phase, build_model
from orchestrator.training import loop, trainer
from orchestrator.training.interfaces import Worker
from orchestrator.training.state import TrainState
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream


class PositionedStream(MemoryStream):
    """A stream that knows the images seen before its last batch (``at``; None before the first).

    Images of the batches in ``broken`` are not finite.
    """

    at: int | None = None
    broken: Sequence[int] = ()

    def training(self, start: int) -> Generator[Batch, None, None]:
        for batch in super().training(start):
            self.at = start
            if start in self.broken:
                batch.images[0, 0, 0, 0] = torch.nan
            yield batch
            start += self.batch


def poison(model: GenerativeModel, network: str, now: Callable[[], bool]) -> None:
    """Make one value of the gradient of ``network`` NaN whenever ``now`` is true."""

    def hook(gradient: Tensor) -> Tensor:
        if now():
            gradient = gradient.clone()
            gradient.view(-1)[0] = torch.nan
        return gradient

    next(iter(model.get_submodule(network).parameters())).register_hook(hook)


def skip_update(model: GenerativeModel, network: str, now: Callable[[], bool]) -> None:
    """Skip the update of ``network`` by hand whenever ``now`` is true, and ``after_step`` too."""
    phases, after_step = model.phases, model.after_step

    def without_updates() -> tuple[Phase, ...]:
        for phase in (made := phases()):
            if phase.name == network:
                step = phase.optimizer.step
                phase.optimizer.step = lambda step=step: None if now() else step()  # type: ignore
        return made

    model.phases = without_updates  # type: ignore[method-assign]
    model.after_step = (  # type: ignore[method-assign]
        lambda means, clock: {} if now() else after_step(means, clock)
    )


class Poisoned:
    """A run of ``job`` with a model that ``change`` has modified, its metrics and checkpoints."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        job: Job,
        change: Callable[[GenerativeModel, PositionedStream], None] = lambda model, stream: None,
        states: Sequence[TrainState] = (),
        broken: Sequence[int] = (),
        stop_at: int | None = None,
    ) -> None:
        self.recorder, self.checkpoints = ListRecorder(), MemoryCheckpoints(deepcopy(list(states)))
        self.stream = PositionedStream()
        self.stream.broken = broken

        def build(config: ModelConfig) -> GenerativeModel:
            model = build_model(config)
            change(model, self.stream)
            return model

        monkeypatch.setattr(trainer, "build_model", build)
        worker = Worker(
            self.recorder,
            self.checkpoints,
            torch.device("cpu"),
            should_stop=lambda: stop_at is not None and self.stream.at == stop_at - 4,
        )
        self.outcome = loop.train(job, self.stream, worker)

    @property
    def state(self) -> TrainState:
        return self.checkpoints.states[-1]


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    kinds: Mapping[str, Any] = {
        k: getattr(state, k) for k in ("networks", "snapshot", "optimizers")
    }
    return {f"{kind}/{name}": t for kind, held in kinds.items() for name, t in held.items()}


def different(a: TrainState, b: TrainState) -> list[str]:
    """Return the tensors and settings that are not the same, bit for bit."""
    one, other = tensors_of(a), tensors_of(b)
    assert one.keys() == other.keys()
    found = [name for name in one if not torch.equal(one[name], other[name])]
    found += [name for name in a.settings if a.settings[name] != b.settings[name]]
    return found if a.images_seen == b.images_seen else [*found, "images_seen"]


def not_finite(state: TrainState) -> list[str]:
    return [name for name, value in tensors_of(state).items() if not value.isfinite().all()]
