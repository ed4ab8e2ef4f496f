"""Extract the features of a set once, and take them from the cache afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orchestrator.evaluation.extractors.extractor import Extractor, extract
from orchestrator.evaluation.feature_set import FeatureSet, to_pixels_batch
from orchestrator.model_evaluation.feature_cache import FeatureCache
from orchestrator.model_evaluation.reference_set import ReferenceSet

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is being done, and the number of images done and in total."""


@dataclass(frozen=True)
class Features:
    """Extracts the features of sets, or takes them from the cache."""

    extractor: Extractor | None
    cache: FeatureCache | None
    progress: ProgressCallback

    def of_set(self, reference: ReferenceSet, what: str) -> FeatureSet | None:
        """Return the features of a set, with its labels; None without an extractor."""
        extractor = self.extractor
        if extractor is None:
            return None
        counter = ImageCounter(what, reference.count, self.progress)

        def compute() -> FeatureSet:
            labels: list[Tensor] = []

            def images() -> Iterator[Tensor]:
                for batch in reference.batches():
                    if batch.labels is not None:
                        labels.append(batch.labels)
                    yield to_pixels_batch(batch.images)
                    counter.add(len(batch))

            found = extract(extractor, images(), what)
            return replace(found, labels=torch.cat(labels)) if labels else found

        if self.cache is None:
            return compute()
        return self.cache.get(reference, extractor, what, compute)


class ImageCounter:
    """Counts images for a progress callback."""

    def __init__(self, what: str, total: int, progress: ProgressCallback) -> None:
        self.what, self.total, self.progress, self.done = what, total, progress, 0

    def add(self, count: int) -> None:
        """Count more images, and report them."""
        self.done += count
        self.progress(self.what, self.done, self.total)
