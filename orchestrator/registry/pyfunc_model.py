"""What MLflow runs to load a registered model: stored with it, as code and not as a pickle.

MLflow runs this file beside a copy of orchestrator.models, without the rest of the project. A model
is its config.json and weights.safetensors, so nothing here unpickles anything.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from safetensors.torch import load_file

from orchestrator.models.base import ModelConfig, Translates, build_model
from orchestrator.models.parts.text import caption_bytes


class ImageModel(PythonModel):
    """Images from a trained model, as MLflow's models give predictions."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from its config and fill in its weights."""
        config = Path(context.artifacts["config"]).read_text()
        self.model = build_model(ModelConfig.model_validate_json(config))
        weights = load_file(context.artifacts["weights"])
        self.model.inference_module().load_state_dict(weights)

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,  # MLflow knows the bare type alone
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.float32]:
        """Images (B, C, H, W) in [-1, 1], the same for the same input and ``seed``.

        Args:
            model_input: for a model that translates, images of that form, which are translated
                as one batch; for one that only samples, int64 (1,): how many images to make.
            params: ``seed``; ``label``, the number of the class to make, for models with
                classes (-1 draws them); ``caption``, for models that follow a text.
        """
        params = params or {}
        generator = torch.Generator().manual_seed(params.get("seed", 0))
        with torch.no_grad():
            if isinstance(self.model, Translates):
                condition = torch.from_numpy(np.array(model_input, dtype=np.float32))
                images = self.model.translate(condition, generator)
            else:
                count, given = int(model_input[0]), None
                if "captions" in self.model.config.takes:
                    given = caption_bytes(params.get("caption", "")).repeat(count, 1)
                elif self.model.config.num_classes and params.get("label", -1) >= 0:
                    given = torch.full((count,), params["label"])
                images = self.model.sample(count, generator, given)
        return images.numpy()


mlflow.models.set_model(ImageModel())
