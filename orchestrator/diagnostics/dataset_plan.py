"""Describe the packed sets that a job reads, for `orchestrator plan`."""

from dataclasses import dataclass, replace

from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob
from orchestrator.data.format.shard_index import INDEX, ShardSet, open_set
from orchestrator.data.loading.mixture import shares_of
from orchestrator.data.loading.training_set import TrainingSet
from orchestrator.errors import EnvironmentProblem, TryAgain
from orchestrator.redaction import mask
from orchestrator.storage.open import open_storage


@dataclass(frozen=True)
class DatasetPlan:
    """A packed set that the job reads."""

    uri: str
    status: str
    """`found`, `missing`, or the error that kept it from being read."""
    num_samples: int | None = None
    digest: str | None = None
    weight: float | None = None
    """Of one of several training sets."""
    share: float | None = None
    """Fraction of the images that comes from it."""
    passes: float | None = None
    """How often the run goes through it; None if not known."""

    def describe(self) -> str:
        """Describe the set in one line."""
        if self.num_samples is None or self.digest is None:
            described = f"{self.uri} ({self.status})"
        else:
            described = f"{self.uri} ({self.num_samples:,} samples, digest {self.digest[:12]})"
        if self.weight is not None and self.share is not None:
            described += f", weight {self.weight:g}: {100 * self.share:.4g} % of the images"
        return described if self.passes is None else f"{described}, seen {self.passes:,.2f} times"


def plan_mixture(
    job: Job, found: list[DatasetPlan], opened: list[ShardSet]
) -> tuple[DatasetPlan, list[DatasetPlan]]:
    """Describe several training sets together, and each with its weight and passes."""
    weights = [each.weight for each in job.data.training_sets]
    shares = shares_of(weights)
    parts = zip(found, weights, shares, strict=True)
    sets = [replace(plan, weight=w, share=float(share)) for plan, w, share in parts]
    name = f"{len(sets)} sets, mixed by weight"
    missing = [plan.status for plan in sets if plan.status != "found"]
    if missing:
        return DatasetPlan(name, missing[0]), sets
    whole = TrainingSet(tuple(opened), tuple(weights))
    together = DatasetPlan(name, "found", whole.num_samples, whole.digest)
    passes = whole.passes(job.train.total_images(whole.num_samples))
    return together, [replace(s, passes=p) for s, p in zip(sets, passes, strict=True)]


def plan_set(
    loaded: LoadedJob, uri: str, path: tuple[str | int, ...], opened: list[ShardSet]
) -> DatasetPlan:
    """Describe the set at ``uri``; if it can be read, also add it to ``opened``."""
    shown = loaded.display_place(uri, *path)
    try:
        if not open_storage(uri).exists(INDEX):
            return DatasetPlan(shown, "missing")
        packed = open_set(uri)
    except (EnvironmentProblem, TryAgain) as error:
        return DatasetPlan(shown, mask(str(error)).replace(mask(uri), shown))
    opened.append(packed)
    return DatasetPlan(shown, "found", packed.num_samples, packed.digest)
