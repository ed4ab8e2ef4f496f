"""The `register:` section of a job file."""

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from orchestrator.bounds import Name, Number, Text
from orchestrator.config.section import Section
from orchestrator.config.sweep import Mode
from orchestrator.evaluation.metric_names import EVALUATION


class BestSection(Section):
    """The metric by which the best checkpoint of a run is chosen."""

    metric: Name
    """Metric of the model or of its validation, such as validation/l1, or of the evaluation beside
    the training, such as evaluation/kid.lite0. A checkpoint counts with the value at its own step;
    one without a finite value does not count."""
    mode: Mode
    """Whether the smallest or the largest value is the best; the first one of equal values wins."""

    @property
    def is_evaluated(self) -> bool:
        """Whether it is a metric of the evaluation, known after its checkpoint was saved."""
        return self.metric.startswith(EVALUATION)


GateMetric: TypeAlias = Literal["kid", "frechet"]


class BetterRule(Section):
    """What must be better than the champion's."""

    mode: Literal["min"] = "min"
    """Smaller is better for every metric that the gate compares."""
    margin: float = Field(default=0, ge=0, le=1e6)
    """By how much at least: the whole 95 % interval of the difference must be below minus this."""


class BetterSection(Section):
    """Metrics in which the candidate must be better than the champion, one or both."""

    kid: BetterRule | None = None
    """The KID on the validation set, such as {margin: 0}."""
    frechet: BetterRule | None = None
    """The Frechet distance on the validation set."""

    def rules(self) -> dict[GateMetric, BetterRule]:
        """Return the rules that are given, by metric."""
        both: dict[GateMetric, BetterRule | None] = {"kid": self.kid, "frechet": self.frechet}
        return {metric: rule for metric, rule in both.items() if rule is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.rules():
            raise ValueError("names no metric; give kid or frechet, such as {kid: {margin: 0}}")
        return self


class LimitsSection(Section):
    """Upper bounds of the candidate's metrics, with or without a champion."""

    kid: Number | None = None
    """Bound of the KID."""
    frechet: Number | None = None
    """Bound of the Frechet distance, for this number of images."""
    nearest: Number | None = None
    """Bound of the share of images that are suspiciously near to a training image, 0 to 1; the
    alarm of copied images refuses too."""
    l1: Number | None = None
    """Bound of the mean L1 distance to the target, for models that translate."""
    nll_nats: Number | None = None
    """Bound of the mean negative log-likelihood in nats per image, for models that have it; of
    binarized images with data.binarize."""
    negative_elbo_nats: Number | None = None
    """The same for models that have a bound of it instead, such as a VAE."""
    latency_ms: Number | None = None
    """Bound of the median time in milliseconds in which one image alone is drawn, on all cores of
    the machine that registers the model."""

    def bounds(self) -> dict[str, float]:
        """Return the bounds that are given, by metric."""
        return self.model_dump(exclude_none=True)


class PromoteSection(Section):
    """The gate: an alias moves only to a version that is better than the one that has it."""

    alias: str = Field(max_length=100, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """The alias, such as champion: letters, digits, - and _."""
    better: BetterSection
    """What must be better than the champion's. Without a champion, the limits alone decide."""
    at_most: LimitsSection = LimitsSection()
    """Limits that the candidate must keep."""
    num_images: int = Field(default=1_000, ge=50, le=10_000)
    """Images that each of the two models draws, and images of the validation set, or all it has."""
    extractor: Text = "lite0"
    """Network whose features are compared: lite0, inception:FILE or onnx:SETTINGS.json, as
    `orchestrator evaluate --extractor` takes it. FILE is on the machine of the driver."""
    exports: list[Literal["onnx", "pt2"]] = Field(default=[], max_length=2)
    """Formats of `orchestrator models export` in which the candidate must draw the same images."""


class RegisterSection(Section):
    """The registered model that is created at the end of the training."""

    name: Name = Field(pattern=r"^[^/:@]+$")
    """Name in the MLflow model registry, without / : @. New versions get the alias `candidate`."""
    best: BestSection | None = None
    """Register the best checkpoint by a metric; by default the newest one. Training waits until a
    checkpoint is written before it saves the next one, so that none is left out; not with a metric
    of the evaluation, which counts the checkpoints that were evaluated."""
    promote: PromoteSection | None = None
    """Move an alias to the new version if it is better than the version that has it."""
