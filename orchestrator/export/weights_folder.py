"""A trained model as a folder of safetensors and JSON, read back before it is kept."""

from pathlib import Path

import torch

from orchestrator.export.exported_sampler import random_condition, random_seeds
from orchestrator.export.parity import ParityFailed
from orchestrator.models.base import GenerativeModel
from orchestrator.registry.bundle import (
    CARD,
    load_bundle,
    read_notes,
    read_source,
    write_bundle,
    write_source,
)

NUM_IMAGES = 5
"""Images that the model and the folder draw."""


def write_weights(model: GenerativeModel, origin: Path, dest: Path) -> None:
    """Write weights, config, notes, card and manifest to ``dest``, and draw with what was written.

    ``origin`` is the pulled folder that the model was loaded from. Raises ParityFailed unless a
    new model, loaded from ``dest``, draws the same images to the bit.
    """
    card, state = origin / CARD, model.inference_module().state_dict()
    text = card.read_text() if card.is_file() else None
    write_bundle(dest, model.config, state, read_notes(origin), text)
    write_source(dest, read_source(origin))
    generator = torch.Generator().manual_seed(0)
    seeds = random_seeds(NUM_IMAGES, generator)
    condition = random_condition(model.config, NUM_IMAGES, generator)
    expected, drawn = (each.sample(seeds, condition) for each in (model, load_bundle(dest)))
    if not torch.equal(expected, drawn):
        difference = (expected - drawn).abs().max().item()
        raise ParityFailed(
            f"the model read back from the exported weights draws other images: largest difference "
            f"{difference:.2g} (limit 0)"
        )
