"""The interface between a model and the trainer.

A model's file has a docstring (paper, equations, departures), a ``Config`` with the paper's
defaults, and a ``Model``. The file's name is the model's name; there is no registry.

Shape suffixes, here and in every model's file:

    B: images in a batch     C: channels     H, W: height and width in pixels
    Z: latent size           K: classes
"""

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
)

import torch
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from orchestrator import models
from orchestrator.bounds import ImageChannels, ImageSide, Name
from orchestrator.models.parts import noise
from orchestrator.models.parts.sampler import Sampler, check_condition

Input: TypeAlias = Literal["pairs", "unpaired", "labels", "captions"]
"""What a data set must provide besides the target images."""


class ModelConfig(BaseModel):
    """Base class of the hyperparameters of a model, ``Config`` in the model's file.

    Validating a mapping against ``ModelConfig`` itself returns the ``Config`` of the model called
    ``name``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    name: Name
    """Stem of the model's file in models/."""
    image_size: ImageSide
    """Height and width of the images in pixels."""
    channels: ImageChannels = 3
    """Channels of an image: 3 for colour, 1 for grey."""

    @property
    def takes(self) -> frozenset[Input]:
        """What the model needs from the data set besides images.

        pairs: input images in ``Batch.condition``. unpaired: the same, from other samples.
        labels: ``Batch.labels``. captions: ``Batch.captions``.
        """
        return frozenset()

    @property
    def translates(self) -> bool:
        """Whether the model turns one image into another: ``sample`` needs images to translate."""
        return bool(self.takes & {"pairs", "unpaired"})

    @property
    def num_classes(self) -> int:
        """Number of classes that ``sample`` can be conditioned on; 0: unconditional."""
        return 0

    @property
    def unlogged_metrics(self) -> frozenset[str]:
        """Names in the file's ``METRICS`` that are not logged with these options."""
        return frozenset()

    @model_validator(mode="wrap")
    @classmethod
    def _use_config_of_named_model(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Any:
        if cls is ModelConfig and isinstance(data, Mapping) and isinstance(data.get("name"), str):
            return model_module(data["name"]).Config.model_validate(data, strict=True)
        return handler(data)


@dataclass(frozen=True)
class Batch:
    """One worker's share of a training batch, or a part of it."""

    images: Tensor
    """Target images: float32 (B, C, H, W) in [-1, 1]."""
    positions: Tensor
    """Position of each sample in the global order: int64 (B,). Keys all per-sample randomness."""
    condition: Tensor | None = None
    """Images to translate, in sets of pairs: float32 (B, C, H, W) in [-1, 1]."""
    labels: Tensor | None = None
    """Class indices, in sets with classes: int64 (B,)."""
    captions: Tensor | None = None
    """UTF-8 text, truncated or zero-padded to T bytes: uint8 (B, T)."""
    seed: int = 0
    """Keys per-sample randomness, together with ``positions``."""

    def __len__(self) -> int:
        return len(self.images)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Return noise uniform in (0, 1), float32 (B, *shape), the same for a sample in any batch.

        Use a different ``name`` for each draw.
        """
        return noise.uniform(self.positions, f"{self.seed} {name}", shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Return standard normal noise, float32 (B, *shape); see ``uniform``."""
        return noise.normal(self.positions, f"{self.seed} {name}", shape)

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to ``device``; from pinned memory without blocking."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def channels_last(self) -> "Batch":
        """Return the batch with images in channels-last memory format."""
        return self._each(
            lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        )

    def split(self, size: int) -> list["Batch"]:
        """Split the batch into parts of at most ``size`` images, in order."""
        return [
            self._each(lambda tensor, start=start: tensor[start : start + size])  # type: ignore[misc]
            for start in range(0, len(self), size)
        ]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


class Loss(NamedTuple):
    """Result of one forward pass of one phase."""

    value: Tensor
    """Mean loss over the images of the batch, a scalar; the trainer calls ``backward`` on it."""
    metrics: Mapping[str, Tensor]
    """Detached scalars to log, means over the batch, by name without the phase."""


Shared: TypeAlias = Mapping[str, Tensor]
Rows: TypeAlias = Sequence[Sequence[Tensor]]
"""Rows of images for one picture, each (C, H, W) in [-1, 1]."""


class Clock(NamedTuple):
    """Progress of a run."""

    step: int
    """Number of finished training steps."""
    share: float
    """Finished fraction of the run, in [0, 1)."""


class Sign(NamedTuple):
    """A condition that, if it lasts, indicates collapse of an adversarial model."""

    name: str
    metrics: tuple[str, ...]
    """Logged names; the condition holds if all are at or above ``least``."""
    least: float
    meaning: str
    """Explanation for the warning."""


def constant(clock: Clock) -> float:
    """Learning-rate factor of a constant learning rate."""
    return 1.0


@dataclass(frozen=True)
class Phase:
    """One optimizer step within a training step.

    Most models have one phase. An adversarial model has one per network, in training order.
    """

    name: str
    module: nn.Module
    """Only the parameters of this module get gradients in this phase."""
    optimizer: Optimizer
    """Optimizer of the parameters of ``module``, with the initial learning rate."""
    loss: Callable[[Batch, Shared], Loss]
    """Loss on a batch, given the result of ``GenerativeModel.shared`` for it."""
    interval: int = 1
    """The phase runs at every ``interval``-th training step."""
    learning_rate_factor: Callable[[Clock], float] = constant
    """Factor on the learning rate, called before each update."""
    momentum: Callable[[Clock], float] | None = None
    """Momentum of SGD or RMSProp, called before each update; None leaves it unchanged."""


class GenerativeModel(nn.Module, ABC):
    """Base class of models. Images are float32 (B, C, H, W) in [-1, 1]."""

    config: ModelConfig
    averaged: ClassVar[tuple[str, ...]] = ()
    """Metrics (<phase>/<metric>) whose means over all ranks ``after_step`` needs."""
    per_rank_buffers: ClassVar[tuple[str, ...]] = ()
    """Name prefixes of buffers that differ between ranks, such as a pool of past images. For all
    other buffers, saving and evaluation use those of rank 0."""
    signs_of_collapse: ClassVar[tuple[Sign, ...]] = ()
    """Conditions to warn or stop for, besides samples that are all alike."""
    not_exported: ClassVar[str] = ""
    """Why torch.export cannot trace ``sampler()``, in a line; empty if it can."""
    images_to_prepare: ClassVar[int] = 0
    """Number of images for ``prepare``; 0: it is not called."""

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in training order.

        Called once per process, after the model is on its device.
        """

    @abstractmethod
    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Draw images (B, C, H, W) in [-1, 1] for ``sampler``, from ``inference_module()`` alone.

        Image i is a function of ``seeds[i]`` and ``condition[i]`` alone: all noise and test-time
        dropout is from models/parts/noise.py with ``seeds`` as positions. The networks are in
        evaluation mode and there are no gradients.

        Args:
            seeds: int64 (B,).
            condition: as in ``sample``; with classes never None.
        """

    def sampler(self) -> nn.Module:
        """Return a module that draws images: seeds int64 (B,), condition=None -> (B, C, H, W).

        Image i is a function of ``seeds[i]`` and ``condition[i]`` alone, whatever the size and the
        order of the batch. See ``sample``, which also checks its input.
        """
        return Sampler(self.inference_module(), self.draw, self.config.num_classes)

    def sample(self, seeds: Tensor, condition: Tensor | None = None) -> Tensor:
        """Draw an image for each seed: float32 (B, C, H, W) in [-1, 1], on the seeds' device.

        Args:
            seeds: int64 (B,). The same seed and condition give the same image in any batch, except
                for rounding, which may differ with the batch size and the device.
            condition: for models that translate, the images to translate, (B, C, H, W). For
                class-conditional models, class indices, int64 (B,); None draws them by the seeds.
                For models with captions, text as in ``Batch.captions``, (B, T).

        Raises:
            ValueError: the condition is missing, not wanted or has the wrong shape.
        """
        config, size = self.config, self.config.image_size
        images = (config.channels, size, size) if config.translates else None
        captions = "captions" in config.takes
        check_condition(seeds, condition, images, config.num_classes, captions=captions)
        drawn: Tensor = self.sampler()(seeds, condition)
        return drawn

    def shared(self, batch: Batch) -> Shared:
        """Compute what several phases use, such as a GAN's generated images, once per batch.

        Runs with gradients, before the first phase. A phase that must not backpropagate into a
        tensor uses ``tensor.detach()``.
        """
        return {}

    def inference_module(self) -> nn.Module:
        """Return the part that sampling needs, which EMA averages and the registry stores."""
        return self

    def prepare(self, examples: Batch) -> None:
        """Data-dependent initialisation, once before the first step of a new run.

        Every rank calls it with the same ``images_to_prepare`` images, or all if there are fewer.
        """

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> Mapping[str, Tensor]:
        """Update state that depends on the losses, such as BEGAN's k_t; return scalars to log.

        Every rank calls it after each training step with the same ``means`` of the metrics in
        ``averaged`` over all ranks. Keep state in buffers, which are saved.
        """
        return {}

    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """Return more pictures by name, with the same noise each time. Only rank 0 calls it."""
        return {}


def model_names() -> list[str]:
    """Return the sorted names of all models: the files in models/ except this one."""
    found = pkgutil.iter_modules(models.__path__)
    return sorted(m.name for m in found if m.name != "base" and not m.ispkg)


def model_module(name: str) -> Any:
    """Import the module of the model ``name``, which has ``Config`` and ``Model``.

    Raises:
        ValueError: there is no such model; the message suggests one and lists all.
    """
    known = model_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no model {name!r}; {hint}models/ has: {', '.join(known)}")
    return importlib.import_module(f"orchestrator.models.{name}")


def build_model(config: ModelConfig) -> GenerativeModel:
    """Build the model for ``config``; weights are drawn from torch's global generator."""
    model = model_module(config.name).Model(config)
    assert isinstance(model, GenerativeModel)
    return model
