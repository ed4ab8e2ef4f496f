"""Known datasets, and the sizes and counts that each one supports.

data/datasets packs them. This module imports nothing, so that a job can be checked without image
libraries.
"""

from collections.abc import Mapping
from dataclasses import dataclass

IDX_SIZES = (28, 32)
"""Sizes in pixels of the MNIST family: as distributed, or padded to a power of two."""
PIX2PIX_ARCHIVES = ("cityscapes", "edges2handbags", "edges2shoes", "facades", "maps", "night2day")

DRAWN_PAIRS = (
    "drawn_attention", "drawn_depths", "drawn_facades", "drawn_maps", "drawn_nights",
    "drawn_seasons", "drawn_views",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetOptions:
    """Options that a dataset supports."""

    sizes: tuple[int, ...] = ()
    """Supported sizes in pixels; empty means any."""
    drawn: bool = False
    """Whether its samples are generated, so that any number can be requested."""
    original: bool = False
    """Whether it is read from its original files, which --from gives."""
    colour: bool = False
    """Whether it has single colour images, from which inputs can be made."""


DATASETS: Mapping[str, DatasetOptions] = {
    "openmoji": DatasetOptions(),
    "openmoji_groups": DatasetOptions(colour=True),
    "mnist": DatasetOptions(sizes=IDX_SIZES),
    "fashion": DatasetOptions(sizes=IDX_SIZES),
    "digits": DatasetOptions(),
    "faces": DatasetOptions(drawn=True, colour=True),
    **{name: DatasetOptions(drawn=True) for name in DRAWN_PAIRS},
    "cifar10": DatasetOptions(original=True, colour=True),
    "lfw": DatasetOptions(original=True, colour=True),
    "celeba": DatasetOptions(original=True, colour=True),
    **{name: DatasetOptions(original=True) for name in PIX2PIX_ARCHIVES},
}


def check_dataset_request(
    name: str,
    size: int,
    count: int | None,
    derive_input: str | None = None,
    source: str | None = None,
) -> str | None:
    """Return why the dataset ``name`` cannot be packed like this, or None if it can."""
    if name not in DATASETS:
        return f"unknown dataset {name!r}; known datasets: {', '.join(DATASETS)}"
    known = DATASETS[name]
    if known.sizes and size not in known.sizes:
        sizes = " or ".join(map(str, known.sizes))
        return f"{name} can be packed at {sizes} px, not at {size}; use one of these sizes"
    if count is not None and not known.drawn:
        drawn = ", ".join(each for each, options in DATASETS.items() if options.drawn)
        return f"{name} has a fixed number of samples; omit the count, which is only for {drawn}"
    if derive_input is not None and not known.colour:
        colour = ", ".join(each for each, options in DATASETS.items() if options.colour)
        return (
            f"{name} is not a set of single colour images, from which inputs can be made; omit "
            f"the derived input, which is only for {colour}"
        )
    if source is not None and not known.original:
        return f"{name} comes from packages, not from files; omit --from"
    return None
