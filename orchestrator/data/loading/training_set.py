"""What a job trains on: one packed set, or several that are mixed by weight."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.config.data_section import DataSection
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import ShardSet, canonical_json, open_set
from orchestrator.data.loading.mixture import shares_of
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.redaction import mask


@dataclass(frozen=True)
class TrainingSet:
    """The opened training sets of a job."""

    sets: tuple[ShardSet, ...]
    weights: tuple[float, ...]
    """One for each set."""

    @property
    def num_samples(self) -> int:
        """Number of samples of all sets, which is the length of an epoch."""
        return sum(packed.num_samples for packed in self.sets)

    @property
    def digest(self) -> str:
        """Sha256 that identifies the data: that of a single set, or of all sets and their shares.

        Weights 3 and 1 are the same as 6 and 2.
        """
        if len(self.sets) == 1:
            return self.sets[0].digest
        shares = map(str, shares_of(self.weights))
        listed = [[s.digest, share] for s, share in zip(self.sets, shares, strict=True)]
        return hashlib.sha256(canonical_json(listed)).hexdigest()

    @property
    def mean_sample_bytes(self) -> int:
        """Mean number of bytes of the samples as they are mixed; at least 1."""
        shares = shares_of(self.weights)
        parts = zip(self.sets, shares, strict=True)
        return max(1, int(sum(part * s.num_bytes / s.num_samples for s, part in parts)))

    @property
    def preparation(self) -> Preparation:
        """How the images became square and 8-bit; nothing if the sets differ in it."""
        found = {s.index.preparation.changed(s.index.fit, None) for s in self.sets}
        return found.pop() if len(found) == 1 else Preparation()

    @property
    def derived_input(self) -> DerivedInput | None:
        """How inputs were made from targets; None if they were given or the sets differ in it."""
        found = {packed.index.derived_input for packed in self.sets}
        return found.pop() if len(found) == 1 else None

    def passes(self, num_images: int) -> list[float]:
        """Return how often ``num_images`` images go through each set."""
        return [
            float(num_images * share / packed.num_samples)
            for packed, share in zip(self.sets, shares_of(self.weights), strict=True)
        ]

    def note(self, num_images: int) -> dict[str, str]:
        """Return a note on a model trained on so many images of several sets; none for one set."""
        if len(self.sets) == 1:
            return {}
        parts = zip(self.sets, self.weights, self.passes(num_images), strict=True)
        listed = (
            f"{mask(packed.uri)} ({packed.num_samples:,} samples, digest {packed.digest[:12]}, "
            f"weight {weight:g}, seen {passes:,.2f} times)"
            for packed, weight, passes in parts
        )
        return {"training_sets": "; ".join(listed)}

    def locate(self, number: int) -> tuple[ShardSet, int]:
        """Return the set of sample ``number`` of all sets, one after the other, and its number."""
        for packed in self.sets:
            if number < packed.num_samples:
                return packed, number
            number -= packed.num_samples
        raise IndexError(number)


def open_training_sets(
    data: DataSection, open_one: Callable[[str], ShardSet] = open_set
) -> TrainingSet:
    """Open the training sets with ``open_one``; read only their indexes.

    Raises DataError if one is missing or corrupt.
    """
    sets = tuple(open_one(each.path) for each in data.training_sets)
    return TrainingSet(sets, tuple(each.weight for each in data.training_sets))
