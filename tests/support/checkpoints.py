"""A small state to save as a checkpoint, and ways to corrupt one."""

import torch

from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.base import Storage
from orchestrator.training.state import TrainState


def make_state(images_seen: int) -> TrainState:
    """A state with every kind of content; its values depend on ``images_seen``."""
    torch.manual_seed(images_seen)
    return TrainState(
        images_seen,
        networks={"net.weight": torch.randn(3, 4), "net.steps": torch.tensor(7)},
        snapshot={"weight": torch.randn(3, 4).t()},
        optimizers={"net.0.exp_avg": torch.randn(3, 4), "net.0.step": torch.tensor(2.0)},
        settings={"net": {"groups": [{"lr": 1e-4, "params": [0]}], "state": {"0": {}}}},
        eval_pending=True,
        stateful={
            "divergence_guard": {"updates": {"in_a_row": {"net": 2}, "norms": {"net": [3, 0.1]}}},
            "metrics": {"last": 16, "points": {"loss": [0.1, 2.5]}, "have": []},
        },
        per_rank_buffers={"0.pool": torch.randn(2, 3), "1.pool": torch.randn(2, 3)},
    ).on_host()


def make_checkpoints(storage: Storage) -> Checkpoints:
    """The checkpoints of a run called ``run``."""
    return Checkpoints(storage, "run/checkpoints", "name: small\n", {"job": "small"})


def flip_bit(storage: Storage, name: str, file: str) -> None:
    """Flip a bit in the middle of a file of the checkpoint called ``name``."""
    key = f"run/checkpoints/{name}/{file}"
    content = bytearray(storage.get(key))
    content[len(content) // 2] ^= 1
    storage.put(key, bytes(content))
