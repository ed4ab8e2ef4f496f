"""Packed sets of random images, of the kind that a model takes."""

from pathlib import Path

import torch
from PIL import Image

from orchestrator.data.format.images import to_png
from orchestrator.data.format.writer import ShardWriter
from orchestrator.image_grid import to_pixels
from orchestrator.models.base import ModelConfig
from support.small import small_batch


def write_set(uri: Path, config: ModelConfig, count: int, first: int = 0) -> None:
    """A packed set of random pictures of the kind that the model takes."""
    takes = config.takes
    pairs = bool(takes & {"pairs", "unpaired"})
    batch = small_batch(config, count, first)
    writer = ShardWriter(
        str(uri),
        ("a", "b") if pairs else ("image",),
        image_size=config.image_size,
        channels=3 if config.channels == 3 else 1,
        classes=tuple(str(k) for k in range(config.num_classes)),
        captions="captions" in takes,
    )

    def png(image: torch.Tensor) -> bytes:
        picture = Image.fromarray(to_pixels(image))
        return to_png(picture.convert("RGB" if config.channels == 3 else "L"))

    for n in range(count):
        images = {"image": png(batch.images[n])}
        if pairs and batch.condition is not None:
            images = {"a": png(batch.condition[n]), "b": png(batch.images[n])}
        label = None if batch.labels is None else int(batch.labels[n])
        writer.add(f"s{n}", images, label, f"picture {n}" if "captions" in takes else None)
    writer.finish()
