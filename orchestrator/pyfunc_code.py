"""What MLflow runs to load a registered model: stored with it, as code and not as a pickle.

MLflow executes this file beside a copy of models/, without the orchestrator package. A model is
its config.json and weights.safetensors, so nothing here unpickles anything.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from safetensors.torch import load_file

from models.base import ModelConfig, Translates, build_model


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
        """
        generator = torch.Generator().manual_seed((params or {}).get("seed", 0))
        with torch.no_grad():
            if isinstance(self.model, Translates):
                condition = torch.from_numpy(np.array(model_input, dtype=np.float32))
                images = self.model.translate(condition, generator)
            else:
                images = self.model.sample(int(model_input[0]), generator)
        return images.numpy()


mlflow.models.set_model(ImageModel())
