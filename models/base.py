"""The whole contract between a model and the trainer.

A model's file holds a docstring (paper, equations, departures), a ``Config`` with the paper's
defaults, and a ``Model``. The file's name is the model's name; there is no registry.

Shape suffixes, here and in every model's file:
    B: images in a batch     C: channels     H, W: height and width in pixels
    Z: latent size           K: classes
"""

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PositiveInt, model_validator
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

import models


class ModelConfig(BaseModel):
    """Hyperparameters of one model. Subclass this as ``Config`` in the model's file.

    Validating a mapping against ``ModelConfig`` itself gives the ``Config`` of the model that
    its ``name`` asks for, so a job file needs no other hint.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    name: str
    """Stem of the model's file in models/."""
    image_size: PositiveInt
    """Height and width of a training image, in pixels."""
    channels: PositiveInt = 3
    """Channels of a training image: 3 for colour, 1 for grey."""

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
    """What the model learns to make: float32 (B, C, H, W) in [-1, 1]."""
    positions: Tensor
    """Place of each sample in the global order: int64 (B,). Keys whatever is drawn per sample."""
    condition: Tensor | None = None
    """The image to translate, for sets of pairs: float32 (B, C, H, W) in [-1, 1]."""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``; the copy from pinned memory does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, size: int) -> list["Batch"]:
        """Parts of at most ``size`` images, in order."""
        return [
            self._each(lambda tensor, start=start: tensor[start : start + size])  # type: ignore[misc]
            for start in range(0, len(self), size)
        ]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        condition = None if self.condition is None else change(self.condition)
        return replace(
            self,
            images=change(self.images),
            positions=change(self.positions),
            condition=condition,
        )


class Loss(NamedTuple):
    """What one forward pass of one phase gives."""

    value: Tensor
    """Mean loss over the images of the batch, a scalar; the trainer calls ``backward`` on it."""
    metrics: Mapping[str, Tensor]
    """Detached scalars to log, means over the batch, named without the phase."""


Shared: TypeAlias = Mapping[str, Tensor]


def constant(progress: float) -> float:
    """The learning rate as it is, from the first step to the last."""
    return 1.0


@dataclass(frozen=True)
class Phase:
    """One optimizer step within a training step.

    Most models have one phase. An adversarial model has one per network, in the order in which
    they are to be trained.
    """

    name: str
    module: nn.Module
    """Only the parameters of this module receive gradients during the phase."""
    optimizer: Optimizer
    """Over the parameters of ``module``; its learning rate is the one at the start."""
    loss: Callable[[Batch, Shared], Loss]
    """Loss on one batch, given what ``GenerativeModel.shared`` returned for it."""
    interval: int = 1
    """The phase runs on every ``interval``-th training step."""
    learning_rate_factor: Callable[[float], float] = constant
    """Factor on the learning rate, given the share of the training that is done, in [0, 1)."""


class GenerativeModel(nn.Module, ABC):
    """A model of images that the trainer can fit and anyone can sample from.

    Images are float32 (B, C, H, W) in [-1, 1].
    """

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """What to minimise, with which optimizer, in training order.

        Called once per process, after the model is on its device.
        """

    @abstractmethod
    def sample(
        self, num_images: int, generator: Generator, condition: Tensor | None = None
    ) -> Tensor:
        """Draw (num_images, C, H, W) images in [-1, 1], the same for the same ``generator`` state.

        Args:
            condition: for models that translate, what to translate: (num_images, C, H, W).

        Raises:
            ValueError: the model needs a condition and got none, or none of that shape.
        """

    def shared(self, batch: Batch) -> Shared:
        """What several phases use, computed once for a batch; a GAN's generated images, say.

        It is computed with gradients on, before the first phase. A phase that must not
        train what made a tensor uses ``tensor.detach()``.
        """
        return {}

    def inference_module(self) -> nn.Module:
        """The part that sampling needs: what EMA averages and the registry keeps."""
        return self


@runtime_checkable
class Translates(Protocol):
    """A model that turns one image into another."""

    def translate(self, condition: Tensor, generator: Generator) -> Tensor:
        """The translation of ``condition``; both (B, C, H, W) in [-1, 1]."""


def model_names() -> list[str]:
    """The names of all models, sorted: the files in models/ but for this one."""
    return sorted(m.name for m in pkgutil.iter_modules(models.__path__) if m.name != "base")


def model_module(name: str) -> Any:
    """The module of the model called ``name``, with its ``Config`` and ``Model``.

    Raises:
        ValueError: there is no such file; the message suggests one and lists them all.
    """
    known = model_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no model is called {name!r}{hint} models/ has: {', '.join(known)}")
    return importlib.import_module(f"models.{name}")


def build_model(config: ModelConfig) -> GenerativeModel:
    """A fresh model for ``config``, its weights drawn from torch's global generator."""
    model = model_module(config.name).Model(config)
    assert isinstance(model, GenerativeModel)
    return model
