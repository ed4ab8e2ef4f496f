"""What all extractors have in common: their interface, and extraction from many images."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from orchestrator.errors import DataError
from orchestrator.evaluation.feature_set import FeatureSet


class Extractor(Protocol):
    """A network with fixed weights and the preprocessing that it was trained with."""

    name: str
    """Part of the name of each metric of its features; another file or size is another name."""
    frechet_name: str
    """What the Frechet distance of its features is called: "fid" for Inception alone."""
    images_per_pass: int
    """Images that it processes at a time."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D) float32 of colour images (B, 3, H, W) uint8 of any size."""
        ...


@torch.no_grad()
def extract(
    extractor: Extractor,
    batches: Iterable[Tensor],
    what: str,
    labels: Tensor | None = None,
) -> FeatureSet:
    """Extract the features of batches of images (B, C, H, W) uint8; grey ones count as colour.

    Args:
        extractor: what extracts.
        batches: images of one size.
        what: what the images are, for messages: "generated images".
        labels: classes of all images, (N,), if they have any.

    Raises:
        DataError: there are no images, they have neither 1 nor 3 channels, or several sizes.
    """
    found: list[Tensor] = []
    shape: tuple[int, ...] | None = None
    for images in batches:
        assert images.dtype == torch.uint8, "extractors take pixels: see to_pixels_batch"
        if images.shape[1] not in (1, 3):
            raise DataError(
                f"{what}: {images.shape[1]} channels, but {extractor.name} reads colour (3) or "
                "grey (1) images"
            )
        if shape is not None and shape != images.shape[1:]:
            raise DataError(
                f"{what}: images of {tuple(images.shape[1:])} among images of {shape} (channels, "
                "height, width); all must have one size"
            )
        shape = tuple(images.shape[1:])
        colour = images.expand(-1, 3, -1, -1)
        found += [extractor(part).cpu() for part in colour.split(extractor.images_per_pass)]
    if not found:
        raise DataError(f"{what}: there are no images")
    features = torch.cat(found)
    assert labels is None or len(labels) == len(features)
    return FeatureSet(what, features, extractor.name, extractor.frechet_name, labels, shape)
