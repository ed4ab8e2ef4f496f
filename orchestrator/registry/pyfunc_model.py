"""Load a registered model in MLflow, which stores this file with the model as code, not a pickle.

MLflow runs it beside a copy of orchestrator.models, without the rest of the project. The model is
read from config.json and weights.safetensors; nothing is unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from safetensors.torch import load_file

from orchestrator.models.base import ModelConfig, build_model
from orchestrator.models.parts.text import caption_bytes


class ImageModel(PythonModel):
    """MLflow model that translates images or samples new ones."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from its config and load its weights.

        Raises ValueError if a file is not what was registered.
        """
        _check_files(context.artifacts)
        config = Path(context.artifacts["config"]).read_text()
        self.model = build_model(ModelConfig.model_validate_json(config))
        weights = load_file(context.artifacts["weights"])
        self.model.inference_module().load_state_dict(weights)

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,  # MLflow supports the bare type only
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return images (B, C, H, W) in [-1, 1], the same for the same input and ``seed``.

        Args:
            model_input: for a model that translates, images of that form; for one that only
                samples, int64 (1,), the number of images.
            params: ``seed``, of every translation, or of the first sample, whose followers have
                the next ones; ``label``, the class number for models with classes (-1 draws
                classes); ``caption`` for models that follow a text.
        """
        params = params or {}
        seed, config = params.get("seed", 0), self.model.config
        given: torch.Tensor | None = None
        if config.translates:
            given = torch.from_numpy(np.array(model_input, dtype=np.float32))
            return self.model.sample(torch.full((len(given),), seed), given).numpy()
        count = int(model_input[0])
        if "captions" in config.takes:
            given = caption_bytes(params.get("caption", "")).repeat(count, 1)
        elif config.num_classes and params.get("label", -1) >= 0:
            given = torch.full((count,), params["label"])
        return self.model.sample(seed + torch.arange(count), given).numpy()


def _check_files(artifacts: dict[str, str]) -> None:
    """Compare the files with the manifest: a damaged model draws other pictures without an error.

    ``artifacts`` are paths by the names of the files without their endings.
    """
    manifest = Path(artifacts["manifest"]).read_bytes()
    files: dict[str, dict[str, Any]] = {}
    for path in (Path(each) for each in artifacts.values()):
        if path.name != "manifest.json":
            content = path.read_bytes()
            files[path.name] = {"bytes": len(content), "sha256": _sha256(content)}
    # As bundle_manifest.py writes it, which is not here: so a flipped bit of it is found, too.
    found = json.dumps({"files": files, "format": 1}, indent=1, sort_keys=True) + "\n"
    if manifest != found.encode():
        other = [name for name, entry in files.items() if entry["sha256"].encode() not in manifest]
        name = other[0] if len(other) == 1 else "a file"
        raise ValueError(f"{name} of this model is damaged: it differs from manifest.json")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


mlflow.models.set_model(ImageModel())
