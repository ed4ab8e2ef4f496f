"""Build a model without its weights, to ask what it is."""

import torch

from orchestrator.models.base import GenerativeModel, ModelConfig, build_model


def build_on_meta(config: ModelConfig) -> GenerativeModel:
    """Build the model of ``config`` on the meta device: names and shapes, but no memory.

    Raises RuntimeError if it cannot be built with the given sizes.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_model(config)
