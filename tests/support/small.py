"""Small configs of every model, which train in milliseconds, and matching batches."""

import torch

from orchestrator.models.base import Batch, GenerativeModel, ModelConfig, build_model

SMALL: dict[str, dict[str, object]] = {
    "age_cgan": {"classes": 3, "latent_size": 6, "filters": 4, "discriminator_filters": 4},
    "text2image": {
        "filters": 4,
        "discriminator_filters": 4,
        "latent_size": 6,
        "text_size": 12,
        "text_filters": 8,
        "projection": 5,
        "interpolation_weight": 1.0,
    },
    "dcgan": {"filters": 4, "latent_size": 8},
    "gan": {"generator_units": 16, "maxout_units": 8, "input_dropout": 0.0},
    "autoencoder": {"hidden": (32, 16), "latent": 4},
    "began": {"filters": 4, "latent": 8, "skip_connections": True},
    "cyclegan": {
        "filters": 4,
        "blocks": 1,
        "discriminator_filters": 4,
        "receptive_field": 16,
        "pool_size": 2,
    },
    "gated_pixelcnn": {"image_size": 8, "levels": 4, "hidden": 12, "layers": 2, "classes": 3},
    "inpainting": {"image_size": 32, "filters": 4, "bottleneck": 8},
    "pix2pix": {
        "image_size": 16,
        "filters": 4,
        "discriminator_filters": 4,
        "receptive_field": 16,
        "norm": "instance",
    },
    "pixelcnn": {"image_size": 8, "levels": 4, "hidden": 12, "blocks": 2, "head_width": 24},
    "pixelcnn_pp": {"image_size": 8, "scales": 2, "resnets": 1, "filters": 4, "mixtures": 2},
    "pixelrnn": {"image_size": 6, "layers": 2, "hidden": 16, "head_width": 96, "levels": 4},
    "vae": {"hidden": (32,), "latent": 4, "importance_samples": 3},
}
"""Options that make a model small; others are built with their defaults at 16 px."""


def scattered_model(name: str, **options: object) -> GenerativeModel:
    """A model whose outputs depend on its inputs more than at initialisation."""
    torch.manual_seed(0)
    made = build_model(small_config(name, **options))
    made.prepare(small_batch(made.config, 8))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.15)
        for key, buffer in made.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
    return made


def small_config(name: str, **options: object) -> ModelConfig:
    """Return the small config of the model called ``name``, updated with ``options``."""
    given = {"name": name, "image_size": 16, **SMALL.get(name, {}), **options}
    return ModelConfig.model_validate(given)


def small_batch(config: ModelConfig, size: int = 4, first: int = 0) -> Batch:
    """Return random samples for ``config``: ``size`` images of a fixed set, from ``first`` on."""
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
    """Return the condition with which ``sample`` makes images like those of ``batch``."""
    if "captions" in config.takes:
        return batch.captions
    if config.num_classes:
        return batch.labels
    if config.translates and batch.condition is None:
        return batch.images
    return batch.condition


def _captions(positions: torch.Tensor) -> torch.Tensor:
    texts = [f"picture number {int(position)}".encode() for position in positions]
    filled = [torch.tensor([*text, *bytes(256 - len(text))]) for text in texts]
    return torch.stack(filled).to(torch.uint8)
