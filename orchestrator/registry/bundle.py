"""A trained model as a folder: weights.safetensors, config.json, notes.json and a README.

With `orchestrator.models` the folder is all that sampling needs; Ray and MLflow are not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.errors import DataError, UsageError
from orchestrator.models.base import GenerativeModel, ModelConfig, Translates, build_model

WEIGHTS, CONFIG, NOTES = "weights.safetensors", "config.json", "notes.json"

_README = """\
# {title}

{origin}.

Run this in this folder, with the package `orchestrator`, torch, pydantic and safetensors installed:

```python
{code}
```

`images` is float32 (B, C, H, W) in [-1, 1] with C = {channels} and H = W = {size}.{input_rule}
Equal seeds give equal images.

{rule}

`config.json` holds the model's parameters, `notes.json` what was noted when it was registered:

{notes}
"""

_LOAD = """\
import torch
from orchestrator.models.base import ModelConfig, build_model
from safetensors.torch import load_file
model = build_model(ModelConfig.model_validate_json(open("config.json").read()))
model.inference_module().load_state_dict(load_file("weights.safetensors"))
"""
_TRANSLATE = """\
drawings = torch.ones({batch}, {channels}, {size}, {size})  # your images
images = model.translate(drawings, torch.Generator().manual_seed(0))"""
_SAMPLE = """\
images = model.sample({batch}, torch.Generator().manual_seed(0))"""

_RULE_TRANSLATE = (
    "The model runs as it did in training: dropout, where it has any, stays on and is drawn from "
    "the generator. With `norm: batch` an image's translation also depends on the other images of "
    "its batch: translate in batches of `images_per_worker` ({batch}), as in training."
)
_RULE_SAMPLE = "`sample` sets the networks to the mode that the model's paper samples in."


def write_model(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write weights, config and notes into ``folder``.

    ``weights`` must be what the ``inference_module()`` of ``config``'s model takes.
    """
    expected = outline(config).inference_module().state_dict()
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    assert shapes == {key: tensor.shape for key, tensor in expected.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that share memory, as tied weights do.
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    (folder / NOTES).write_text(json.dumps(notes, indent=2, default=str) + "\n")


def write_readme(folder: Path, title: str, origin: str) -> None:
    """Write how to use the model in ``folder``, which has config and notes already."""
    config, notes = pulled_config(folder), pulled_notes(folder)
    translates = isinstance(outline(config), Translates)
    fields = {
        "batch": notes.get("images_per_worker", 1),
        "channels": config.channels,
        "size": config.image_size,
    }
    text = _README.format(
        title=title,
        origin=origin,
        code=_LOAD + (_TRANSLATE if translates else _SAMPLE).format(**fields),
        input_rule=" So is the input." if translates else "",
        rule=(_RULE_TRANSLATE if translates else _RULE_SAMPLE).format(**fields),
        notes="\n".join(f"- {key}: {as_text(value)}" for key, value in notes.items()),
        **fields,
    )
    (folder / "README.md").write_text(text)


def load_pulled(folder: Path) -> GenerativeModel:
    """The model in ``folder``, with its weights, on the CPU.

    Raises:
        UsageError: a file is missing.
        DataError: a file is damaged, or the weights are not those of the config's model.
    """
    config = pulled_config(folder)
    model = build_model(config)
    try:
        weights = load_file(_present(folder, WEIGHTS))
        model.inference_module().load_state_dict(weights)
    # load_state_dict raises RuntimeError, naming every missing, unexpected or misshapen key.
    except (SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{folder / WEIGHTS} is damaged or not of the model in {CONFIG}: {error}\nPull it again"
        ) from error
    return model


def pulled_config(folder: Path) -> ModelConfig:
    """The config in ``folder``.

    Raises:
        UsageError: there is none.
        DataError: it is no config of a model that is in models/.
    """
    path = _present(folder, CONFIG)
    try:
        return ModelConfig.model_validate_json(path.read_text())
    except (ValidationError, ValueError) as error:
        raise DataError(
            f"{path} is no config that this version of the models takes: {error}"
        ) from error


def pulled_notes(folder: Path) -> dict[str, Any]:
    """What was noted at registration: metrics, digest of the data, job, `images_per_worker`."""
    notes: dict[str, Any] = json.loads(_present(folder, NOTES).read_text())
    return notes


def outline(config: ModelConfig) -> GenerativeModel:
    """The model of ``config`` without memory for its tensors: its names, shapes and abilities."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_model(config)


def as_text(value: Any) -> str:
    """A note's value as a person reads it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise UsageError(
            f"{folder} has no {name}: give a folder that `orchestrator models pull` has written"
        )
    return path
