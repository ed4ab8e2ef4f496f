"""The `sweep:` section of a job file."""

from typing import Annotated, Literal, Self, TypeAlias

from annotated_types import MaxLen
from pydantic import Field, model_validator

from orchestrator.bounds import Count, Images, Integer, Name, Number, Seed, Text
from orchestrator.config.section import Section

Value: TypeAlias = bool | Integer | Number | Text | None
"""A value of one field of a job."""
Mode: TypeAlias = Literal["min", "max"]


class Distribution(Section):
    """Distribution of one field of the search space: exactly one of these keys."""

    uniform: list[Number] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: a number drawn uniformly."""
    loguniform: list[Number] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: a number drawn uniformly in its logarithm, for rates; low must be above 0."""
    quniform: list[Number] | None = Field(default=None, min_length=3, max_length=3)
    """[low, high, step]: one of low, low + step, ... up to high."""
    randint: list[Integer] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: an integer, both ends included."""
    choice: list[Value] | None = Field(default=None, min_length=1, max_length=10_000)
    """One of these values, with equal probability."""
    grid: list[Value] | None = Field(default=None, min_length=1, max_length=10_000)
    """Every one of these values, in all combinations with the other grids."""

    @property
    def kind(self) -> str:
        """The key that is set, such as `uniform`."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def args(self) -> list[Value]:
        """The list under that key."""
        return list(getattr(self, self.kind))

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"must have exactly one of {known}; it has {found}")
        values = self.args
        if self.kind in ("uniform", "loguniform", "quniform", "randint"):
            low, high, *step = (float(value) for value in values if value is not None)
            if low >= high:
                raise ValueError(f"{self.kind}: {low:g} must be less than {high:g}")
            if self.kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: {low:g} must be above 0")
            if step and not 0 < step[0] <= high - low:
                raise ValueError(f"quniform: the step {step[0]:g} must be in (0, {high - low:g}]")
        elif len(set(map(repr, values))) < len(values):
            raise ValueError(f"{self.kind}: contains a value twice")
        return self


class SweepSection(Section):
    """A hyperparameter search: its trials, the search space, early stopping and the objective."""

    metric: Name | Annotated[list[Name], MaxLen(100)]
    """Metric to optimize, such as validation/l1. Two metrics search for the Pareto front: the
    trials that no other trial beats in both."""
    mode: Mode | Annotated[list[Mode], MaxLen(100)] = "min"
    """Whether to minimize or maximize the metric; for two metrics, one mode for both or a list of
    two."""
    space: dict[str, Distribution] = Field(min_length=1, max_length=1_000)
    """Search space: a distribution for each field of the job, such as model.gamma."""
    trials: Count | None = None
    """Number of configurations to try; with the grid searcher, the whole grid by default."""
    searcher: Literal["random", "grid", "tpe"] = "random"
    """random: independent draws; grid: all combinations; tpe: Optuna's tree-structured Parzen
    estimator, which draws near good configurations."""
    scheduler: Literal["fifo", "asha", "hyperband", "median", "pbt"] = "fifo"
    """fifo: run every trial to its end; asha and hyperband: pause trials at rungs and promote the
    best; median: stop trials below the median of the others; pbt: population based training,
    where the worst trials continue from copies of the best."""
    report_every: Images | None = None
    """Images between two intermediate results, each the mean of the metric since the previous one;
    by default a twentieth of the training."""
    grace_images: Images | None = None
    """Images before a trial can be stopped; for pbt, images between two rounds of copies. By
    default a ninth of the training, for pbt a fifth."""
    reduction_factor: int = Field(default=3, ge=2, le=1_000)
    """For asha and hyperband: one of this many trials is promoted at each rung, and trains for this
    many times the images."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """For pbt: fraction of the trials that are replaced by copies of the best."""
    seeds_per_config: Count = 1
    """Trials per configuration, with the seeds train.seed, train.seed + 1, ...; a configuration is
    judged by their mean."""
    max_concurrent: Count | None = None
    """Maximum number of concurrent trials; by default as many as the cluster has room for."""
    max_hours: float | None = Field(default=None, gt=0, le=1_000_000)
    """Time limit of the sweep: after it no trial is started, and running trials are stopped."""
    seed: Seed = 0
    """Seed of the searcher and the scheduler."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in the order given."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode of each metric."""
        return (self.mode,) * len(self.metrics) if isinstance(self.mode, str) else tuple(self.mode)
