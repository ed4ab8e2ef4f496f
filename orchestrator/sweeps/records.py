"""What is known of a search: one record for each training, JSON in the storage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from orchestrator.config.sweep import SweepSection, Value

Status: TypeAlias = Literal[
    "waiting", "running", "paused", "finished", "stopped", "diverged", "failed"
]
"""waiting: not started; paused: saved, until its rung or round is complete; stopped: ended early by
the scheduler; diverged: ended by the guard."""
OVER = ("finished", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class Look:
    """One look at a training's metrics."""

    images_seen: int
    values: tuple[float, ...]
    """One for each metric of the sweep; NaN where there was none."""
    order: int
    """The how manieth look of the whole sweep it was, over all trainings."""


@dataclass(frozen=True)
class Leg:
    """A stretch of a training with one set of values; only pbt makes more than one."""

    run: str
    """Name of the run, and of its folder in the storage."""
    values: Mapping[str, Value]
    """By the dotted path of the field."""
    source: str | None = None
    """Where it starts: RUN/checkpoints/NAME of another training, in the same storage; None: anew.
    Where the storage is, the environment may have said."""
    parent: int | None = None
    """Number of the training that it was copied from."""
    from_images: int = 0
    """Images seen at its start."""
    mlflow_run_id: str | None = None


@dataclass
class Trial:
    """One training of a sweep."""

    number: int
    configuration: int
    """Trainings of one configuration differ in their seed alone."""
    repeat: int
    """Which one of its configuration it is; added to train.seed."""
    legs: list[Leg]
    """The last one counts."""
    status: Status = "waiting"
    why: str = ""
    """Why it ended, or waits."""
    looks: list[Look] = field(default_factory=list)
    failures: int = 0
    """How often its process was lost."""
    seconds: float = 0.0
    """In which it ran, over all its processes."""
    told: Literal["go on", "stop", "pause"] = "go on"
    """After its newest look. So one whose process was lost before it did that is not judged again,
    by what is known later, nor goes on as if nobody had judged it."""

    @property
    def values(self) -> Mapping[str, Value]:
        """Its values now."""
        return self.legs[-1].values

    @property
    def images_seen(self) -> int:
        """At the last look."""
        return self.looks[-1].images_seen if self.looks else 0

    @property
    def is_over(self) -> bool:
        """Whether it will not go on."""
        return self.status in OVER

    def last(self, metric: int = 0) -> float:
        """The metric at the last look; NaN before the first."""
        return self.looks[-1].values[metric] if self.looks else math.nan

    def to_json(self) -> dict[str, Any]:
        """For the storage. JSON has no NaN: such values are null."""
        given = asdict(self)
        for look in given["looks"]:
            look["values"] = [v if math.isfinite(v) else None for v in look["values"]]
        return given

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Trial":
        """From what ``to_json`` gave."""
        legs = [Leg(**leg) for leg in given["legs"]]
        looks = [
            Look(look["images_seen"], _floats(look["values"]), look["order"])
            for look in given["looks"]
        ]
        return cls(**{**given, "legs": legs, "looks": looks})


@dataclass(frozen=True)
class Sweep:
    """A search and all that came of it: what reports are made from."""

    name: str
    """Of the sweep: <job>-<time>-<letters>."""
    job: str
    section: SweepSection
    total_images: int
    """Of a whole training."""
    trials: Sequence[Trial]
    state: str = "running"
    """running, stopped, finished, or lost: its driver is gone and it can be resumed."""
    tracking_uri: str = ""
    mlflow_run_id: str = ""
    """Of the parent run."""
    num_trials: int = 0
    """How many trainings there will be in all; 0: those that are there."""

    @property
    def has_all_trials(self) -> bool:
        """Whether no training will be added."""
        return len(self.trials) >= self.num_trials


@dataclass(frozen=True)
class Standing:
    """How good a configuration is, from its trainings that are over."""

    configuration: int
    values: Mapping[str, Value]
    means: tuple[float, ...]
    """One for each metric."""
    spreads: tuple[float, ...]
    """Standard deviations over its trainings; 0 where there is one."""
    trials: tuple[int, ...]
    """Their numbers."""
    images_seen: int
    """Of the training that saw fewest."""


def standings(sweep: Sweep) -> list[Standing]:
    """The configurations of which every training ended with a number, the best first.

    A training that was ended early counts only among those that saw as many images; so whole ones
    come first. Of two metrics the first one gives the order.
    """
    found = []
    grouped: dict[int, list[Trial]] = {}
    for trial in sweep.trials:
        grouped.setdefault(trial.configuration, []).append(trial)
    for configuration, trials in grouped.items():
        done = all(t.status in ("finished", "stopped") and t.looks for t in trials)
        if not done or len(trials) < sweep.section.seeds_per_config:
            continue
        columns = list(zip(*(t.looks[-1].values for t in trials), strict=True))
        if not all(math.isfinite(value) for column in columns for value in column):
            continue
        means = tuple(sum(column) / len(column) for column in columns)
        spreads = tuple(_deviation(column) for column in columns)
        seen = min(t.images_seen for t in trials)
        numbers = tuple(t.number for t in trials)
        values = trials[0].values
        found.append(Standing(configuration, values, means, spreads, numbers, seen))
    sign = 1 if sweep.section.modes[0] == "min" else -1
    return sorted(found, key=lambda s: (-s.images_seen, sign * s.means[0], s.configuration))


def pareto_front(sweep: Sweep) -> list[Standing]:
    """The standings that no other one with as many images beats in all metrics, best first."""
    signs = [1 if mode == "min" else -1 for mode in sweep.section.modes]

    def scores(standing: Standing) -> list[float]:
        return [sign * mean for sign, mean in zip(signs, standing.means, strict=True)]

    def beats(one: Standing, other: Standing) -> bool:
        pairs = list(zip(scores(one), scores(other), strict=True))
        better = any(a < b for a, b in pairs)
        return better and all(a <= b for a, b in pairs) and one.images_seen >= other.images_seen

    whole = standings(sweep)
    return [s for s in whole if not any(beats(other, s) for other in whole)]


def _floats(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample: divided by n - 1."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
