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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeAlias,
    runtime_checkable,
)

import torch
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PositiveInt, model_validator
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from orchestrator import models
from orchestrator.models.parts import noise

Input: TypeAlias = Literal["pairs", "unpaired", "labels", "captions"]
"""What a data set must hold besides the images that a model learns to make."""


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

    @property
    def takes(self) -> frozenset[Input]:
        """What the model learns from besides images; the data set must hold it.

        pairs: input images in ``Batch.condition``. unpaired: the same, of other samples.
        labels: ``Batch.labels``. captions: ``Batch.captions``.
        """
        return frozenset()

    @property
    def num_classes(self) -> int:
        """Classes that ``sample`` makes on demand; 0 for a model that takes no labels."""
        return 0

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
    labels: Tensor | None = None
    """Number of the class, for sets with classes: int64 (B,)."""
    captions: Tensor | None = None
    """UTF-8 text, cut off or filled up with zeros to T bytes: uint8 (B, T)."""
    seed: int = 0
    """With ``positions`` it keys what is drawn."""

    def __len__(self) -> int:
        return len(self.images)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Noise (B, *shape), uniform in (0, 1), float32: the same for a sample in any batch.

        ``name`` says what it is for; draw once per name.
        """
        return noise.uniform(self.positions, f"{self.seed} {name}", shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal noise (B, *shape), float32; see ``uniform``."""
        return noise.normal(self.positions, f"{self.seed} {name}", shape)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``; the copy from pinned memory does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def channels_last(self) -> "Batch":
        """The same batch with its images channels-last in memory."""
        return self._each(
            lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        )

    def split(self, size: int) -> list["Batch"]:
        """Parts of at most ``size`` images, in order."""
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
    """What one forward pass of one phase gives."""

    value: Tensor
    """Mean loss over the images of the batch, a scalar; the trainer calls ``backward`` on it."""
    metrics: Mapping[str, Tensor]
    """Detached scalars to log, means over the batch, named without the phase."""


Shared: TypeAlias = Mapping[str, Tensor]
Rows: TypeAlias = Sequence[Sequence[Tensor]]
"""A picture: rows of images, each (C, H, W) in [-1, 1]."""


class Clock(NamedTuple):
    """How far a training has come."""

    step: int
    """Training steps done so far."""
    share: float
    """Share of the training that is done, in [0, 1)."""


class Sign(NamedTuple):
    """What tells, if it lasts, that an adversarial training has collapsed or is lost."""

    name: str
    metrics: tuple[str, ...]
    """All of these, named as they are logged, are at or above ``least``."""
    least: float
    meaning: str
    """What it means for the training, for the warning."""


def constant(clock: Clock) -> float:
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
    learning_rate_factor: Callable[[Clock], float] = constant
    """Factor on the learning rate, asked before each update."""
    momentum: Callable[[Clock], float] | None = None
    """Momentum of an SGD or RMSProp optimizer, asked before each update; None leaves it alone."""


class GenerativeModel(nn.Module, ABC):
    """A model of images that the trainer can fit and anyone can sample from.

    Images are float32 (B, C, H, W) in [-1, 1].
    """

    config: ModelConfig
    averaged: ClassVar[tuple[str, ...]] = ()
    """Metrics, named <phase>/<metric>, whose means over all ranks ``after_step`` needs."""
    per_rank_buffers: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of buffers that differ from rank to rank, such as a pool of past
    images. All other buffers are rank 0's when a model is saved or evaluated."""
    signs_of_collapse: ClassVar[tuple[Sign, ...]] = ()
    """What to warn of, or to stop for, besides samples that are all alike."""
    images_to_prepare: ClassVar[int] = 0
    """Images that ``prepare`` wants; 0: it is not called."""

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
            condition: what to make. For models that translate, the images to translate:
                (num_images, C, H, W). For models with classes, their numbers: int64
                (num_images,); without them the classes are drawn. For models with captions, the
                text as in ``Batch.captions``.

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

    def prepare(self, examples: Batch) -> None:
        """Initialise what depends on data, once, before the first step of a new training.

        Every rank calls it with the same ``images_to_prepare`` images, or fewer if there are.
        """

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> Mapping[str, Tensor]:
        """Update what follows the losses, such as BEGAN's k_t; gives scalars to log as they are.

        Every rank calls it after each training step with the same ``means``: those of the metrics
        named in ``averaged``, over all ranks. State belongs in buffers: they are saved.
        """
        return {}

    def pictures(self, examples: Batch, generator: Generator) -> Mapping[str, Rows]:
        """Pictures to look at besides samples and reconstructions, by name; rank 0 draws them."""
        return {}


@runtime_checkable
class Translates(Protocol):
    """A model that turns one image into another."""

    def translate(self, condition: Tensor, generator: Generator) -> Tensor:
        """The translation of ``condition``; both (B, C, H, W) in [-1, 1]."""


@runtime_checkable
class Reconstructs(Protocol):
    """A model that codes an image and gives it back."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """What is left of ``images`` after coding; both (B, C, H, W) in [-1, 1]. No randomness."""


@runtime_checkable
class HasLikelihood(Protocol):
    """A model that says how likely an image is, or a bound on it."""

    def negative_log_likelihood(self, batch: Batch) -> Mapping[str, Tensor]:
        """Nats for each image, summed over its values: (B,) each, by name.

        ``nll_nats`` if exact; bounds are named for what they are: ``negative_elbo_nats``. Noise
        comes from ``batch.normal`` or ``batch.uniform``; dropout is off.
        """


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode and without gradients inside, as before outside."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def model_names() -> list[str]:
    """The names of all models, sorted: the files in models/ but for this one."""
    found = pkgutil.iter_modules(models.__path__)
    return sorted(m.name for m in found if m.name != "base" and not m.ispkg)


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
    return importlib.import_module(f"orchestrator.models.{name}")


def build_model(config: ModelConfig) -> GenerativeModel:
    """A fresh model for ``config``, its weights drawn from torch's global generator."""
    model = model_module(config.name).Model(config)
    assert isinstance(model, GenerativeModel)
    return model
