"""Records of a sweep: one for each trial, stored as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator, NonNegativeInt

from orchestrator.bounds import NonNegativeCount
from orchestrator.config.sweep import SweepSection, Value
from orchestrator.storage.base import validate_key

Status: TypeAlias = Literal[
    "waiting", "running", "paused", "finished", "stopped", "diverged", "failed"
]
"""waiting: not running, may start or resume; paused: saved, until its rung or pbt interval is
decided; stopped: ended early by the scheduler; diverged: ended by the guard, or collapsed at its
end."""
TERMINAL = ("finished", "stopped", "diverged", "failed")


_Key = Annotated[str, AfterValidator(validate_key)]
_Metric = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""As Trial.to_json writes it."""


@dataclass(frozen=True)
class IntermediateResult:
    """Metrics of a trial after some images."""

    images_seen: NonNegativeInt
    values: tuple[_Metric, ...]
    """One for each metric of the sweep; NaN where the metric was not logged."""
    order: NonNegativeInt
    """Position among the results of all trials, in the order of arrival, from 0."""


@dataclass(frozen=True)
class TrialSegment:
    """Part of a trial with one set of values; only pbt makes more than one."""

    run: _Key
    """Name of the run, and of its folder in the storage."""
    values: Mapping[str, Value]
    """By the dotted path of the field."""
    source_checkpoint: _Key | None = None
    """RUN/checkpoints/NAME of the parent to start from, relative to the storage, whose URI may be a
    secret; None to start from scratch."""
    parent: int | None = None
    """Number of the trial that was copied."""
    start_images: int = 0
    """Images seen at the start of the segment."""
    mlflow_run_id: str | None = None


@dataclass
class Trial:
    """One training run within a sweep."""

    number: NonNegativeCount
    configuration: NonNegativeCount
    """Trials of one configuration differ only in their seed."""
    seed_index: NonNegativeCount
    """Index of the seed within the configuration; added to train.seed."""
    segments: Annotated[list[TrialSegment], MinLen(1)]
    """The last one is current."""
    status: Status = "waiting"
    reason: str = ""
    """Why it ended or waits."""
    results: list[IntermediateResult] = field(default_factory=list)
    num_failures: int = 0
    """How often its process died."""
    runtime_s: float = 0.0
    """Over all its processes."""
    last_decision: Literal["continue", "stop", "pause"] = "continue"
    """Decision at its newest result. It holds if the process dies before it has carried it out:
    the trial is neither judged again by what is known later, nor continued unjudged."""

    @property
    def values(self) -> Mapping[str, Value]:
        """Current values."""
        return self.segments[-1].values

    @property
    def images_seen(self) -> int:
        """Images at the newest result; 0 before the first."""
        return self.results[-1].images_seen if self.results else 0

    @property
    def is_over(self) -> bool:
        """Whether it will not run again."""
        return self.status in TERMINAL

    @property
    def is_ranked(self) -> bool:
        """Whether it ended in good order, with a result."""
        return self.status in ("finished", "stopped") and bool(self.results)

    def last_value(self, metric: int = 0) -> float:
        """Metric number ``metric`` at the newest result; NaN before the first."""
        return self.results[-1].values[metric] if self.results else math.nan

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types; NaN and infinity, which JSON lacks, become null."""
        given = asdict(self)
        for result in given["results"]:
            result["values"] = [v if math.isfinite(v) else None for v in result["values"]]
        return given


@dataclass(frozen=True)
class Sweep:
    """Sweep with all its trials; schedulers, searchers and reports read it."""

    name: str
    """<job>-<time>-<letters>"""
    job: str
    section: SweepSection
    total_images: int
    """Of a complete trial."""
    trials: Sequence[Trial]
    state: str = "running"
    """running, stopped, finished, or orphaned: its driver died and it can be resumed."""
    mlflow_run_id: str = ""
    """Of the parent run."""
    num_trials: int = 0
    """How many trials there will be in all; 0: those in ``trials``."""

    @property
    def has_all_trials(self) -> bool:
        """Whether no trial will be added."""
        return len(self.trials) >= self.num_trials

    def by_configuration(self) -> dict[int, list[Trial]]:
        """Group the trials by configuration; groups and trials are in order."""
        ordered = sorted(self.trials, key=lambda trial: (trial.configuration, trial.number))
        return {k: list(found) for k, found in groupby(ordered, lambda t: t.configuration)}


@dataclass(frozen=True)
class RankedConfig:
    """Configuration with the results of its trials, all of which are over."""

    configuration: int
    values: Mapping[str, Value]
    means: tuple[float, ...]
    """Over its trials, one for each metric."""
    spreads: tuple[float, ...]
    """Standard deviations over its trials; 0 for a single trial."""
    trials: tuple[int, ...]
    """Their numbers."""
    images_seen: int
    """The fewest among its trials."""


def rank_configs(sweep: Sweep) -> list[RankedConfig]:
    """Rank the configurations whose trials all ended with a finite metric, best first.

    More images rank first: a trial that stopped early is only compared with those that saw as many
    images. Of two metrics the first one decides.
    """
    found = []
    for configuration, trials in sweep.by_configuration().items():
        if len(trials) < sweep.section.seeds_per_config or not all(t.is_ranked for t in trials):
            continue
        columns = list(zip(*(t.results[-1].values for t in trials), strict=True))
        if not all(math.isfinite(value) for column in columns for value in column):
            continue
        means = tuple(sum(column) / len(column) for column in columns)
        spreads = tuple(_standard_deviation(column) for column in columns)
        seen = min(t.images_seen for t in trials)
        numbers = tuple(t.number for t in trials)
        values = trials[0].values
        found.append(RankedConfig(configuration, values, means, spreads, numbers, seen))
    sign = 1 if sweep.section.modes[0] == "min" else -1
    return sorted(found, key=lambda c: (-c.images_seen, sign * c.means[0], c.configuration))


def pareto_front(sweep: Sweep) -> list[RankedConfig]:
    """Select the configurations that no other one with as many images dominates, best first."""
    signs = [1 if mode == "min" else -1 for mode in sweep.section.modes]

    def losses(config: RankedConfig) -> list[float]:
        return [sign * mean for sign, mean in zip(signs, config.means, strict=True)]

    def dominates(one: RankedConfig, other: RankedConfig) -> bool:
        pairs = list(zip(losses(one), losses(other), strict=True))
        better = any(a < b for a, b in pairs)
        return better and all(a <= b for a, b in pairs) and one.images_seen >= other.images_seen

    configs = rank_configs(sweep)
    return [c for c in configs if not any(dominates(other, c) for other in configs)]


def _standard_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1)."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
