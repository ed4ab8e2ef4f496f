"""The `sweep:` block of a job file."""

from typing import Literal, Self, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic.types import NonNegativeInt

from orchestrator.config.section import Section

Value: TypeAlias = bool | int | float | str | None
"""What a field of a job can be set to."""
Mode: TypeAlias = Literal["min", "max"]


class Distribution(Section):
    """What one field is drawn from: exactly one of these."""

    uniform: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: any number between them."""
    loguniform: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: a number whose logarithm is uniform, for rates and weights; low above 0."""
    quniform: list[float] | None = Field(default=None, min_length=3, max_length=3)
    """[low, high, step]: low, low + step, ... up to high."""
    randint: list[int] | None = Field(default=None, min_length=2, max_length=2)
    """[low, high]: a whole number, both ends included."""
    choice: list[Value] | None = Field(default=None, min_length=1)
    """One of these, all as likely."""
    grid: list[Value] | None = Field(default=None, min_length=1)
    """Each of these with each value of the other grids."""

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def given(self) -> list[Value]:
        """What is behind it."""
        return list(getattr(self, self.kind))

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"must have exactly one of {known}; it has {found}")
        values = self.given
        if self.kind in ("uniform", "loguniform", "quniform", "randint"):
            low, high, *step = (float(value) for value in values if value is not None)
            if low >= high:
                raise ValueError(f"{self.kind}: {low:g} must be below {high:g}")
            if self.kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: {low:g} must be above 0")
            if step and not 0 < step[0] <= high - low:
                raise ValueError(f"quniform: the step {step[0]:g} must be in (0, {high - low:g}]")
        elif len(set(map(repr, values))) < len(values):
            raise ValueError(f"{self.kind}: a value is there twice")
        return self


class SweepSection(Section):
    """A search: which trainings there are, which are ended early, and what counts as good."""

    metric: str | list[str]
    """Name of the metric that tells how good a training is, such as validation/l1; or two of them,
    for the trainings that no other one beats in both."""
    mode: Mode | list[Mode] = "min"
    """Whether a low or a high metric is good; for two metrics one word for both, or two."""
    space: dict[str, Distribution] = Field(min_length=1)
    """What is searched: for fields of the job, such as model.gamma, what they are drawn from."""
    trials: PositiveInt | None = None
    """Configurations to try; with the searcher grid by default the whole grid."""
    searcher: Literal["random", "grid", "tpe"] = "random"
    """random: independent draws; grid: all combinations; tpe: draws near what was good (Optuna)."""
    scheduler: Literal["fifo", "asha", "hyperband", "median", "pbt"] = "fifo"
    """fifo: each training to its end; asha and hyperband: trainings wait at rungs, and the better
    share goes on; median: those below the others' median end; pbt: the worst go on from copies of
    the best."""
    report_every: PositiveInt | None = None
    """Images between two looks at the metric: the mean of its points since the last look. By
    default a twentieth of the training."""
    grace_images: PositiveInt | None = None
    """No training is ended before it has seen so many images; for pbt, images between two rounds
    of copies. By default a ninth of the training, for pbt a fifth."""
    reduction_factor: int = Field(default=3, ge=2)
    """asha and hyperband: one in so many goes on from a rung, to so many times the images."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """pbt: share of the trainings that are replaced by copies of as many of the best."""
    seeds_per_config: PositiveInt = 1
    """Trainings of each configuration, with seeds train.seed, train.seed + 1, ...; it is judged by
    their mean."""
    max_concurrent: PositiveInt | None = None
    """Most trainings at a time; by default as many as the cluster has room for."""
    max_hours: PositiveFloat | None = None
    """After so long no training is started, and those that run are stopped."""
    seed: NonNegativeInt = 0
    """Start of the search's randomness."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in the order given."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode of each metric."""
        if isinstance(self.mode, str):
            return (self.mode,) * len(self.metrics)
        return tuple(self.mode)
