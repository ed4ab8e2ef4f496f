"""Registered models as other versions of the orchestrator write them, from their sources."""

import json
from pathlib import Path

from safetensors.torch import save_file

from orchestrator.models.base import GenerativeModel

NOTES = {"validation/l1": 0.25, "images_per_worker": 2, "job": "tiny", "data_digest": "abc"}


def write_old_bundle(folder: Path, model: GenerativeModel, format_: int = 1) -> None:
    """Write what ``write_bundle`` of 0.2.0 wrote; 3 stands for a format of the future."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.inference_module().state_dict()
    save_file(dict(weights), folder / "weights.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(model.config.model_dump_json(indent=2) + "\n")
    notes = NOTES if format_ == 1 else {**NOTES, "format": format_}
    (folder / "notes.json").write_text(json.dumps(notes, indent=2) + "\n")
