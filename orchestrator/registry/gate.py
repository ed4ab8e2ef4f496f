"""The gate: whether a candidate may take an alias from the champion that has it.

Pure: it compares two evaluations on the same data, number of images and extractor.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from orchestrator.config.register_section import GateMetric, PromoteSection
from orchestrator.errors import OrchestratorError
from orchestrator.evaluation.frechet import frechet_distance
from orchestrator.evaluation.intervals import Interval, difference_interval
from orchestrator.evaluation.kid import kid_difference
from orchestrator.evaluation.report import Measurement
from orchestrator.model_evaluation.evaluate_model import Evaluation

COMPARED_BY = ("data_digest", "num_images", "seed", "extractor")
"""What must be equal in both evaluations, from their ``about``."""
NOTED = (*COMPARED_BY, "machine")
"""What the record has of it."""
OTHER_NAMES = {
    "frechet": "fid",
    "nll_nats": "nll_nats_binarized",
    "negative_elbo_nats": "negative_elbo_nats_binarized",
}
"""What a metric is called with Inception's features, or on binarized images."""


class GateRefused(OrchestratorError):
    """A version may not have the alias; the message has the numbers."""

    exit_code = 5


@dataclass(frozen=True)
class Difference:
    """One metric of the candidate and of the champion."""

    metric: str
    candidate: float
    champion: float
    difference: float
    """Candidate minus champion."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    margin: float

    @property
    def is_better(self) -> bool:
        """Whether the whole interval is below minus the margin; never if one is not finite."""
        numbers = (self.candidate, self.champion, self.low, self.high)
        return all(map(math.isfinite, numbers)) and self.high < -self.margin

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.candidate:.4g}, the champion's {self.champion:.4g}: difference "
            f"{self.difference:.3g}, 95 % interval {self.low:.3g} to {self.high:.3g}"
        )


@dataclass(frozen=True)
class Measured:
    """One metric of the candidate, as its card has it."""

    metric: str
    value: float
    n: int
    low: float | None
    """Lower end of the 95 % interval, where there is one."""
    high: float | None


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided, and its numbers."""

    promoted: bool
    reasons: tuple[str, ...]
    """Why not, a line each; for a promotion, what decided."""
    champion: int | None = None
    """Version that had the alias."""
    differences: tuple[Difference, ...] = ()
    measured: tuple[Measured, ...] = ()
    """Metrics of the candidate."""
    about: dict[str, Any] = field(default_factory=dict)
    """Data, number of images and extractor; the machine, if the latency was measured."""

    def record(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return asdict(self)


def decide(
    rules: PromoteSection,
    candidate: Evaluation,
    champion: Evaluation | None,
    champion_version: int | None = None,
    judged_by: Mapping[str, Any] | None = None,
) -> GateDecision:
    """Decide whether the candidate may have the alias.

    Args:
        rules: the job's.
        candidate: evaluation of the candidate.
        champion: that of the version that has the alias; None if no version has it.
        champion_version: its number.
        judged_by: data, number of images and extractor by which the champion got the alias, where
            that is recorded: who changes them cannot say that the candidate is better.
    """
    reasons = list(_over_limits(rules, candidate))
    differences: tuple[Difference, ...] = ()
    if champion is not None:
        unlike = [*_unlike(candidate, champion.about), *_unlike(candidate, judged_by or {})]
        unlike = list(dict.fromkeys(unlike))
        reasons += unlike
        if not unlike:
            differences = tuple(compare(rules, candidate, champion))
            reasons += [f"not better: {each}" for each in differences if not each.is_better]
    promoted = not reasons
    if promoted:
        reasons = [str(each) for each in differences] or ["no version had the alias"]
    about = {key: candidate.about[key] for key in NOTED if key in candidate.about}
    measured = tuple(map(to_measured, candidate.report.measurements))
    return GateDecision(promoted, tuple(reasons), champion_version, differences, measured, about)


def compare(
    rules: PromoteSection, candidate: Evaluation, champion: Evaluation
) -> Iterator[Difference]:
    """Yield the difference of each metric of ``better``, with its interval."""
    x, other, real = candidate.generated, champion.generated, candidate.reference
    assert x is not None
    assert other is not None
    assert real is not None
    for metric, rule in rules.better.rules().items():
        value, interval = difference_of(metric, x.features, other.features, real.features)
        yield Difference(
            metric=find(candidate, metric).metric,
            candidate=find(candidate, metric).value,
            champion=find(champion, metric).value,
            difference=value,
            low=interval.low,
            high=interval.high,
            margin=rule.margin,
        )


def difference_of(
    metric: GateMetric, x_ND: Tensor, other_ND: Tensor, y_MD: Tensor
) -> tuple[float, Interval]:
    """Return metric(x, y) - metric(other, y) and its 95 % interval.

    Image i of x and of other have the same seed and condition, and are drawn together.
    """
    if metric == "kid":
        return kid_difference(x_ND, other_ND, y_MD, paired=True)
    return difference_interval(frechet_distance, (x_ND, other_ND), y_MD, paired=True)


def find(evaluation: Evaluation, metric: str) -> Measurement:
    """Return the measurement of a metric, whose name may also have extractor and number."""
    names = {metric, OTHER_NAMES.get(metric)}
    measured = evaluation.report.measurements
    return next(each for each in measured if each.metric.partition(".")[0] in names)


def to_measured(each: Measurement) -> Measured:
    """Return what the card has of a measurement."""
    low, high = (None, None) if each.interval is None else (each.interval.low, each.interval.high)
    return Measured(each.metric, each.value, each.n, low, high)


def _over_limits(rules: PromoteSection, candidate: Evaluation) -> Iterator[str]:
    for metric, bound in rules.at_most.bounds().items():
        measured = find(candidate, metric)
        if not measured.value <= bound:  # also if it is not a number
            yield f"{measured.metric} is {measured.value:.4g}, and at most {bound:g} is allowed"
        if measured.details.get("alarm"):
            yield (
                f"{measured.metric}: the model copies training images: {measured.value:.2%} are as "
                f"near to one as {measured.details['held_out']:.2%} of unseen images are (chance "
                f"{measured.details['probability']:.1g})"
            )


def _unlike(candidate: Evaluation, champion: Mapping[str, Any]) -> Iterator[str]:
    for key in COMPARED_BY:
        ours, theirs = candidate.about.get(key), champion.get(key)
        if champion and ours != theirs:
            yield f"{key} is {ours}, and the champion was judged with {theirs}"
