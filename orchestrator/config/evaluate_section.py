"""The `evaluate:` section of a job file."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.bounds import NOT_BOOLEAN, Count, Images, Text
from orchestrator.config.section import Section
from orchestrator.evaluation.metric_names import Metric


class EvaluateSection(Section):
    """Evaluation of checkpoints on the validation set, in a process beside the training."""

    every: Images | None = None
    """Images between two evaluations, each of the first checkpoint from there on; by default every
    checkpoint is evaluated. One at a time: if it takes longer than that, the newest checkpoint is
    next, and those between are left out. The last one is always evaluated."""
    metrics: list[Metric] | None = Field(default=None, min_length=1, max_length=8)
    """Metrics to measure; by default all that fit the model and the set, except `nearest`, for
    which all training images have to be read."""
    num_images: int = Field(default=1_000, ge=1, le=1_000_000)
    """Images to generate, and as many of the validation set, or all it has."""
    extractor: Text = "lite0"
    """Network for the features: lite0, inception:FILE or onnx:SETTINGS.json."""
    cpus: Count = 1
    """CPU cores that an evaluation may use. They are not reserved."""
    gpus: Annotated[Literal[0, 1], NOT_BOOLEAN] = 0
    """1 evaluates on a GPU that no worker has, and waits until one is free."""

    @property
    def measured(self) -> tuple[Metric, ...] | None:
        """The metrics in the order given; None for all that fit."""
        return None if self.metrics is None else tuple(self.metrics)
