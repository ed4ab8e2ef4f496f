"""Checkpoints as other versions of the orchestrator write them, from their sources."""

import hashlib
import json

import torch
from safetensors.torch import save

from orchestrator.storage.base import Storage

NAME = "000000000100-0123abcd"
KINDS = {
    1: ("networks", "snapshot", "optimizers"),
    2: ("networks", "snapshot", "optimizers", "own"),
    3: ("networks", "snapshot", "optimizers", "per_rank_buffers"),
    4: ("networks", "snapshot", "optimizers", "per_rank_buffers"),
}
"""Files of tensors of each format; 4 stands for one of the future."""
STATES = {
    1: {},
    2: {"guard": {}, "owing": False, "recorder": {}},
    3: {"stateful": {}, "eval_pending": False},
    4: {"stateful": {}, "eval_pending": False},
}


def write_checkpoint(
    storage: Storage, format_: int, version: str | None = None
) -> dict[str, bytes]:
    """Write a checkpoint of 100 images of a run called ``run``; return its files by key."""
    files = {f"{kind}.safetensors": save({"w": torch.arange(6.0)}) for kind in KINDS[format_]}
    settings = {"net": {"groups": [{"lr": 1e-4, "params": [0]}], "state": {}}}
    state = {"images_seen": 100, "optimizers": settings, **STATES[format_]}
    files["state.json"] = json.dumps(state, indent=1, sort_keys=True).encode()
    files["job.yaml"] = b"name: small\n"
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    manifest = {"format": format_, "images_seen": 100, "files": listed, "job": "small"}
    manifest |= {} if version is None else {"version": version}
    files["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode()
    written = {f"run/checkpoints/{NAME}/{name}": content for name, content in files.items()}
    for key, content in written.items():
        storage.put(key, content)
    return written
