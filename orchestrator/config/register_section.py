"""The `register:` section of a job file."""

from pydantic import Field

from orchestrator.bounds import Name
from orchestrator.config.section import Section
from orchestrator.config.sweep import Mode


class BestSection(Section):
    """The metric by which the best checkpoint of a run is chosen."""

    metric: Name
    """Metric of the model or of its validation, such as validation/l1. A checkpoint counts with
    the value at its own step; one without a finite value does not count."""
    mode: Mode
    """Whether the smallest or the largest value is the best; the first one of equal values wins."""


class RegisterSection(Section):
    """The registered model that is created at the end of the training."""

    name: Name = Field(pattern=r"^[^/:@]+$")
    """Name in the MLflow model registry, without / : @. New versions get the alias `candidate`."""
    best: BestSection | None = None
    """Register the best checkpoint by a metric; by default the newest one. Training waits until a
    checkpoint is written before it saves the next one, so that none is left out."""
