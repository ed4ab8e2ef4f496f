"""Save a trained model in MLflow's pyfunc flavour, which MLflow's tools can load and serve."""

import shutil
import tempfile
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator import bounds, models
from orchestrator.models.base import ModelConfig
from orchestrator.registry.bundle import CARD, FILES
from orchestrator.registry.bundle_manifest import MANIFEST

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature


def save_pyfunc(
    folder: Path, logged: "LoggedModel", config: ModelConfig, files: Path, example: Tensor | None
) -> None:
    """Write the model in MLflow's pyfunc flavour: its files and the code that loads them.

    Args:
        files: folder that ``write_bundle`` wrote.
        example: images (B, C, H, W) in [-1, 1] for the input example of a model that translates.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as temporary:
        # Importing MLflow warns about type hints in its own classes.
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
        from mlflow.models import Model

        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=logged.source_run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={Path(name).stem: str(files / name) for name in (*FILES, CARD, MANIFEST)},
            code_paths=[str(_copy_model_code(Path(temporary)))],
            signature=_signature(config),
            input_example=_input_example(config, example),
            # Given, because inferring them loads the model in another process, for a minute.
            pip_requirements=[
                f"{package}=={installed_version(package).partition('+')[0]}"
                for package in ("mlflow", "torch", "pydantic", "safetensors", "numpy")
            ],
        )


def _copy_model_code(folder: Path) -> Path:
    """Copy the package orchestrator.models, and the module that it imports, to ``folder``."""
    package = folder / "orchestrator"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy2(bounds.__file__, package)
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(models.__path__[0], package / "models", ignore=without_caches)
    return package


def _signature(config: ModelConfig) -> "ModelSignature":
    """Describe input and output: images; a model that only samples takes a number of images."""
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    shape = (-1, config.channels, config.image_size, config.image_size)
    images = Schema([TensorSpec(np.dtype(np.float32), shape)])
    number = Schema([TensorSpec(np.dtype(np.int64), (1,))])
    params = [ParamSpec("seed", DataType.long, 0)]
    if config.num_classes:
        params.append(ParamSpec("label", DataType.long, -1))
    if "captions" in config.takes:
        params.append(ParamSpec("caption", DataType.string, ""))
    inputs = images if config.translates else number
    return ModelSignature(inputs=inputs, outputs=images, params=ParamSchema(params))


def _input_example(config: ModelConfig, example: Tensor | None) -> NDArray[Any]:
    """Return two images to translate, or 2 for a model that takes a number of images."""
    if not config.translates:
        return np.array([2], dtype=np.int64)
    if example is None:
        example = torch.ones(1, config.channels, config.image_size, config.image_size)
    # MLflow stores JSON, in which a multiple of 1/128 takes 7 digits and other floats take 18.
    two = example[:2] if len(example) > 1 else example.repeat(2, 1, 1, 1)
    return ((two.detach().cpu().float() * 128).round() / 128).numpy()
