"""Trace a model's sampler to a program that takes any number of images."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from orchestrator.errors import UsageError
from orchestrator.export.exported_sampler import (
    ExportedSampler,
    Kind,
    as_given,
    inputs_of,
    random_condition,
    random_seeds,
)
from orchestrator.models.base import GenerativeModel

TRACED = 2
"""Images of the batch that is traced; a batch of 1 would be taken for a constant."""


def trace(model: GenerativeModel, kind: Kind) -> ExportedProgram:
    """Trace ``ExportedSampler`` of the model with any batch size, on the CPU.

    Raises UsageError if the model cannot be traced.
    """
    check_traceable(model)
    inputs = example_inputs(model, kind)
    shapes = {info.name: {0: Dim("batch", min=1)} for info in inputs_of(model.config, kind)}
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                ExportedSampler(model, kind), inputs, dynamic_shapes=shapes
            )
        except Exception as error:  # torch.export has no class of its own for them
            raise UsageError(
                f"model {model.config.name} cannot be traced by torch.export: {summary(error)}; "
                "use --format safetensors, or see docs/add-a-model.md about draw() and not_exported"
            ) from error
    for node in program.graph.nodes:  # they have the paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def check_traceable(model: GenerativeModel) -> None:
    """Raise UsageError if the model says why it is not traced."""
    if reason := model.not_exported:
        raise UsageError(
            f"model {model.config.name} is exported as safetensors alone: {reason}; use --format "
            "safetensors, or draw with `orchestrator sample`"
        )


def example_inputs(model: GenerativeModel, kind: Kind) -> tuple[Tensor, ...]:
    """Return random inputs of an exported model."""
    generator = torch.Generator().manual_seed(0)
    seeds = random_seeds(TRACED, generator)
    condition = random_condition(model.config, TRACED, generator)
    given = as_given(model.config, condition, kind)
    return (seeds,) if given is None else (seeds, given)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out warnings, which torch's exporters have many of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def summary(error: Exception) -> str:
    """Return class and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
