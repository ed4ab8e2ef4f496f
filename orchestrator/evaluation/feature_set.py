"""Features of a set of images, and what must hold before two sets are compared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orchestrator.errors import DataError


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of one set by one extractor."""

    what: str
    """What the images are, for messages: "generated images"."""
    features: Tensor
    """Float (N, D)."""
    extractor: str
    """Name of the extractor; features of two extractors cannot be compared."""
    frechet_name: str = "frechet"
    """What the Frechet distance of these features is called: "fid" for Inception alone."""
    labels: Tensor | None = None
    """Classes of the images, int64 (N,), if they have any."""
    image_shape: tuple[int, ...] | None = None
    """(C, H, W) of the images, where it is known."""

    def __len__(self) -> int:
        return len(self.features)

    def of_class(self, label: int) -> "FeatureSet":
        """Return the images of one class."""
        assert self.labels is not None
        chosen = self.features[self.labels == label]
        return replace(self, what=f"{self.what} of class {label}", features=chosen, labels=None)


def check_features(features: FeatureSet, at_least: int) -> None:
    """Check that a set is large enough for a metric, and that its features are finite.

    Raises:
        DataError: it is not.
    """
    if len(features) < at_least:
        raise DataError(
            f"{features.what}: {len(features)} images are too few, this metric needs at least "
            f"{at_least}; use more images"
        )
    broken = int((~features.features.isfinite()).any(1).sum())
    if broken:
        raise DataError(
            f"{features.what}: the features of {broken} of {len(features)} images are not finite; "
            f"check the images and the extractor {features.extractor}"
        )


def check_comparable(real: FeatureSet, generated: FeatureSet, at_least: int) -> None:
    """Check that two sets can be compared.

    Raises:
        DataError: the extractors or the kind and size of the images differ, a set is too small or
            has features that are not finite.
    """
    same = real.features.shape[1] == generated.features.shape[1]
    if real.extractor != generated.extractor or not same:
        raise DataError(
            f"{generated.what}: features of {generated.extractor} "
            f"({generated.features.shape[1]} values) cannot be compared with those of "
            f"{real.extractor} ({real.features.shape[1]} values); extract both with one extractor"
        )
    if real.image_shape and generated.image_shape:
        check_shapes(real.image_shape, generated.image_shape, generated.what)
    for features in (real, generated):
        check_features(features, at_least)


def classes(
    real: FeatureSet, generated: FeatureSet
) -> Iterator[tuple[int, FeatureSet, FeatureSet]]:
    """Yield each class of the real images with its images of both sets.

    Raises:
        DataError: a set has no labels, or a class is in one set alone.
    """
    found = {}
    for features in (real, generated):
        if features.labels is None:
            raise DataError(f"{features.what}: no labels, which metrics per class need")
        found[features.what] = set(features.labels.tolist())
    every = sorted(set.union(*found.values()))
    for what, labels in found.items():
        missing = [str(label) for label in every if label not in labels]
        if missing:
            raise DataError(
                f"{what}: no image of {'class' if len(missing) == 1 else 'classes'} "
                f"{', '.join(missing)}, so there is nothing to compare; both sets need images of "
                "each class"
            )
    for label in every:
        yield label, real.of_class(label), generated.of_class(label)


def to_pixels_batch(images: Tensor) -> Tensor:
    """Convert images (B, C, H, W) in [-1, 1] to uint8 as they would be stored, rounded.

    Extractors take these, so that a generated image has the features of the file it becomes.
    """
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_shapes(
    real: tuple[int, ...], generated: tuple[int, ...], what: str = "generated images"
) -> None:
    """Check that generated images have the channels and the size (C, H, W) of real ones.

    Raises:
        DataError: they differ, which a distance between features would hide or exaggerate.
    """
    if real != generated:
        raise DataError(
            f"{what}: {_described(generated)}, but the reference has {_described(real)}; "
            "compare images of one kind and size"
        )


def _described(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    return f"{kind} images of {width} x {height} pixels"
