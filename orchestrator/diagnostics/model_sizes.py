"""Sizes of a model, its optimizer state and its gradients, computed without allocating them."""

from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import UsageError
from orchestrator.models.base import GenerativeModel, Phase, build_model
from orchestrator.training.state import optimizer_tensors


def build_on_meta(config: Any) -> tuple[GenerativeModel, tuple[Phase, ...]]:
    """Build the model on the meta device, which takes no memory, and make one optimizer step."""
    try:
        with torch.device("meta"):
            model = build_model(config)
            phases = model.phases()
            for phase in phases:
                _make_step(phase)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        message = f"model {config.name} cannot be built: {first}; use smaller sizes"
        raise UsageError(message) from error
    return model, phases


def _make_step(phase: Phase) -> None:
    """Make one optimizer step, which allocates the optimizer's state."""
    for group in phase.optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False  # fused kernels refuse the meta device
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    phase.optimizer.step()


def count_parameters(model: GenerativeModel) -> dict[str, int]:
    """Count the parameters of each network of ``model``."""
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    return {name: count for name, count in counts.items() if count}


def checkpoint_bytes(model: GenerativeModel, phases: tuple[Phase, ...]) -> int:
    """Size of the networks, the inference snapshot and the optimizers' tensors."""
    tensors: list[Tensor] = [*model.state_dict().values()]
    tensors += model.inference_module().state_dict().values()
    tensors += optimizer_tensors(phases).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gradient_bytes(config: Any) -> int:
    """Size of the gradients of all trainable parameters, in fp32."""
    with torch.device("meta"):
        model = build_model(config)
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
