"""A model's sampler as a program of torch.export, which is written and never read back.

``torch.export.load`` unpickles what is in the file, so it runs the code of whoever made it. The
program is therefore checked in memory, before it is saved.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.export.exported_sampler import Kind
from orchestrator.export.tracing import quiet, trace
from orchestrator.models.base import GenerativeModel

FACTS_FILE = "orchestrator.json"
"""Extra file with the facts, inside the .pt2."""


class TorchProgram:
    """A traced sampler, on the CPU."""

    def __init__(self, model: GenerativeModel, kind: Kind, facts: Mapping[str, str]) -> None:
        """Trace the model. Raises UsageError if it cannot be traced."""
        self._facts = json.dumps(facts)
        self._program = trace(model, kind)
        self._module = self._program.module()

    def __call__(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Draw images with the program."""
        given = (seeds,) if condition is None else (seeds, condition)
        with torch.no_grad():
            images: Tensor = self._module(*given)
        return images

    def write(self, path: Path) -> None:
        """Save the program."""
        with quiet(), path.open("wb") as file:
            torch.export.save(self._program, file, extra_files={FACTS_FILE: self._facts})
