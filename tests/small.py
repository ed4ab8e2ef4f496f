"""Every model small enough to train in milliseconds, and batches of the kind that it takes."""

import torch

from models.base import Batch, ModelConfig

SMALL: dict[str, dict[str, object]] = {
    "pix2pix": {
        "image_size": 16,
        "filters": 4,
        "discriminator_filters": 4,
        "receptive_field": 16,
        "norm": "instance",
    },
}
"""Options that make a model small; one that is not here is built with its defaults at 16 px."""


def small_config(name: str, **options: object) -> ModelConfig:
    """The small config of the model called ``name``, with ``options`` on top."""
    given = {"name": name, "image_size": 16, **SMALL.get(name, {}), **options}
    return ModelConfig.model_validate(given)


def small_batch(config: ModelConfig, size: int = 4, first: int = 0) -> Batch:
    """Random samples of what ``config`` takes: images ``first`` and following of a fixed set."""
    shape = (config.channels, config.image_size, config.image_size)
    images, inputs = [], []
    for number in range(first, first + size):
        noise = torch.Generator().manual_seed(number)
        a, b = (torch.randint(256, shape, generator=noise) / 127.5 - 1 for _ in range(2))
        images.append(a)
        inputs.append(b)
    positions = torch.arange(first, first + size)
    takes = config.takes
    return Batch(
        images=torch.stack(images),
        positions=positions,
        condition=torch.stack(inputs) if takes & {"pairs", "unpaired"} else None,
        labels=positions % config.num_classes if "labels" in takes else None,
        captions=_captions(positions) if "captions" in takes else None,
    )


def condition_for(config: ModelConfig, batch: Batch) -> torch.Tensor | None:
    """What ``sample`` needs to make images like those of ``batch``."""
    if "captions" in config.takes:
        return batch.captions
    if config.num_classes:
        return batch.labels
    return batch.condition


def _captions(positions: torch.Tensor) -> torch.Tensor:
    texts = [f"picture number {int(position)}".encode() for position in positions]
    filled = [torch.tensor([*text, *bytes(256 - len(text))]) for text in texts]
    return torch.stack(filled).to(torch.uint8)
