"""One version of a model, loaded and warm: what a service draws with."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.format.preparation import Preparation, preparation_of
from orchestrator.export.exported_sampler import (
    as_given,
    from_levels,
    random_condition,
    random_seeds,
    to_levels,
)
from orchestrator.models.base import Batch, GenerativeModel, ModelConfig
from orchestrator.models.parts.abilities import DrawsRows, HasLatents, HasLikelihood
from orchestrator.models.parts.sampler import evaluating
from orchestrator.page.page_facts import Backend, page_facts
from orchestrator.registry.bundle import CARD, load_bundle, read_notes, read_source
from orchestrator.serving.engines import (
    Device,
    Engine,
    EngineChoice,
    choose_batch,
    make_engine,
)
from orchestrator.serving.limits import Limits
from orchestrator.serving.request_batcher import Compute, RequestBatcher

Observe = Callable[[str, int, float], None]
"""Called after each batch with the version, its size and the seconds that it took."""


@dataclass
class ServedVersion:
    """A loaded version. Its batchers compute in threads of their own until ``close``."""

    name: str
    version: int
    """0 if it is a folder of which nothing is known."""
    model: GenerativeModel
    device: Device
    engine: Engine
    max_batch: int
    preparation: Preparation
    notes: Mapping[str, Any]
    """Of the registration."""
    card: str
    limits: Limits
    observe: Observe
    users: int = 0
    """Requests that use it now."""
    is_retired: bool = False
    _batchers: list[RequestBatcher] = field(default_factory=list)

    @property
    def config(self) -> ModelConfig:
        """That of the model."""
        return self.model.config

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{self.name}/{self.version}" if self.version else self.name

    @property
    def abilities(self) -> tuple[object, ...]:
        """What decides which requests it can answer."""
        config = self.config
        protocols = (HasLatents, DrawsRows, HasLikelihood)
        return (
            config.translates,
            "captions" in config.takes,
            config.num_classes,
            *(isinstance(self.model, protocol) for protocol in protocols),
        )

    @cached_property
    def latent_size(self) -> int:
        """Numbers of a latent vector; 0 if the model has none."""
        has_latents = isinstance(self.model, HasLatents)
        return self.latents(np.zeros(1, np.int64)).shape[1] if has_latents else 0

    @cached_property
    def drawing(self) -> RequestBatcher:
        """Draws seeds and conditions; see ``Engine``."""
        return self._batcher(self.engine.draw, self._observe)

    @cached_property
    def decoding(self) -> RequestBatcher:
        """Decodes latents, float32 (B, Z), with conditions, to uint8 images."""
        return self._batcher(self._decode, self._observe)

    @cached_property
    def measuring(self) -> RequestBatcher:
        """Measures uint8 images (B, C, H, W), with classes if there are any: nats, float64 (B,)."""
        return self._batcher(self._measure)

    @property
    def num_waiting(self) -> int:
        """Images that wait to be drawn."""
        return sum(batcher.num_waiting for batcher in self._batchers)

    def latents(self, seeds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the latents of seeds, (B, Z)."""
        assert isinstance(self.model, HasLatents)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.model.latents(self._to(seeds)).cpu().numpy()
        return found

    @cached_property
    def likelihood_name(self) -> str:
        """Name of what ``measuring`` returns, such as nll_nats; empty if there is no likelihood."""
        if not isinstance(self.model, HasLikelihood):
            return ""
        shape = (1, self.config.channels, self.config.image_size, self.config.image_size)
        labels = torch.zeros(1, dtype=torch.int64, device=self.device)
        batch = Batch(
            torch.zeros(shape, device=self.device),
            labels,
            labels=labels if self.config.num_classes else None,
        )
        return next(iter(self.model.negative_log_likelihood(batch)))

    def facts(self, *, token_required: bool = False) -> Mapping[str, Any]:
        """Return what a client must know to ask for images."""
        backend = Backend(
            latent_size=self.latent_size,
            rows=isinstance(self.model, DrawsRows),
            likelihood=self.likelihood_name,
            token_required=token_required,
        )
        limits = {key: asdict(self.limits)[key] for key in ("bytes", "pixels", "images")}
        facts = page_facts(self.model, self.name, self.version, self.card, self.notes, backend)
        return {**facts, "engine": self.engine.name, "limits": limits}

    def close(self) -> None:
        """End the batchers when nothing waits any more."""
        for batcher in self._batchers:
            batcher.close()

    def _batcher(
        self, compute: Compute, observe: Callable[[int, float], None] = lambda size, seconds: None
    ) -> RequestBatcher:
        made = RequestBatcher(compute, self.max_batch, self.limits.waiting, observe)
        self._batchers.append(made)
        return made

    def _decode(self, latents: NDArray[np.float32], *condition: NDArray[Any]) -> NDArray[np.uint8]:
        assert isinstance(self.model, HasLatents)
        given = self._to(condition[0]) if condition else None
        with evaluating(self.model.inference_module()), torch.inference_mode():
            images = self.model.decode(self._to(latents), given)
            levels: NDArray[np.uint8] = to_levels(images.float()).cpu().numpy()
        return levels

    def _measure(
        self, images: NDArray[np.uint8], *labels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        assert isinstance(self.model, HasLikelihood)
        batch = Batch(
            from_levels(self._to(images)),
            torch.zeros(len(images), dtype=torch.int64, device=self.device),
            labels=self._to(labels[0]) if labels else None,
        )
        with torch.inference_mode():
            nats = self.model.negative_log_likelihood(batch)[self.likelihood_name]
        found: NDArray[np.float64] = nats.double().cpu().numpy()
        return found

    def _observe(self, size: int, seconds: float) -> None:
        self.observe(self.title, size, seconds)

    def _to(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def load_version(
    folder: Path,
    *,
    engine: EngineChoice = "auto",
    device: Device = "cpu",
    limits: Limits | None = None,
    observe: Observe = lambda title, size, seconds: None,
) -> ServedVersion:
    """Load the model in a pulled folder, choose its engine and warm it up. Takes up to a minute.

    Raises as ``load_bundle`` and ``make_engine`` do.
    """
    model = load_bundle(folder).eval().requires_grad_(False).to(device)
    source, card = read_source(folder), folder / CARD
    name, version = source.model or folder.name, source.version or 0

    def example(count: int) -> tuple[NDArray[Any], ...]:
        generator = torch.Generator().manual_seed(0)
        seeds = random_seeds(count, generator)
        given = as_given(model.config, random_condition(model.config, count, generator), "uint8")
        return (seeds.numpy(),) if given is None else (seeds.numpy(), given.numpy())

    notes = read_notes(folder)
    made = make_engine(model, folder, engine, device, example)
    return ServedVersion(
        name=name,
        version=version,
        model=model,
        device=device,
        engine=made,
        max_batch=choose_batch(made, example),
        preparation=preparation_of(notes),
        notes=notes,
        card=card.read_text() if card.is_file() else "",
        limits=limits or Limits(),
        observe=observe,
    )
