"""Every model in models/ is exported and draws the same images, or says why not in one line.

New files in models/ are tested automatically.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from orchestrator.errors import UsageError
from orchestrator.export.exported_facts import ExportedFrom, facts_of
from orchestrator.export.exported_sampler import Kind
from orchestrator.export.onnx_program import OnnxProgram
from orchestrator.export.parity import measure_parity
from orchestrator.export.torch_program import TorchProgram
from orchestrator.image_grid import to_pixels
from orchestrator.models.base import GenerativeModel, build_model, model_names
from support.small import condition_for, scattered_model, small_batch, small_config

VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in model_names()),
    ("dcgan", {"classes": 3}),
    ("pix2pix", {"norm": "batch", "dropout": 0.5}),
]
FROM = ExportedFrom("drawings", 3, "a" * 64)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: "-".join([v[0], *map(str, v[1])]))
def model(request: pytest.FixtureRequest) -> GenerativeModel:
    name, options = request.param
    return scattered_model(name, **options)


def skip_if_refused(model: GenerativeModel) -> None:
    """Skip a model that says why it is not exported, after a look at what it says."""
    if not model.not_exported:
        return
    with pytest.raises(UsageError) as caught:
        TorchProgram(model, "float", {})
    (line,) = str(caught.value).splitlines()
    assert f"model {model.config.name} is exported as safetensors alone: " in line
    assert model.not_exported in line
    pytest.skip(line)


def eager(model: GenerativeModel, seeds: Tensor, first: int) -> tuple[Tensor | None, Tensor]:
    """A condition for ``seeds``, and what the model draws from it."""
    condition = condition_for(model.config, small_batch(model.config, len(seeds), first))
    return condition, model.sample(seeds, condition)


def pixels(images: Tensor) -> np.ndarray:
    """What `orchestrator sample` writes, (B, H, W, 3)."""
    return np.stack([to_pixels(image) for image in images])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_an_onnx_file_draws_what_the_model_draws(
    model: GenerativeModel, kind: Kind, tmp_path: Path
) -> None:
    skip_if_refused(model)
    program = OnnxProgram(model, kind, facts_of(model.config, kind, FROM))
    parity = measure_parity(model, program, kind)
    assert parity.holds, str(parity)

    program.write(tmp_path / "x.onnx")  # and read it as a user does, with other inputs
    session: Any = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["orchestrator.name"], facts["orchestrator.version"]) == ("drawings", "3")
    assert facts["orchestrator.kind"] == kind
    assert facts["orchestrator.weights_sha256"] == "a" * 64
    told = [(each["name"], each["shape"]) for each in json.loads(facts["orchestrator.inputs"])]
    assert told == [(each.name, each.shape) for each in session.get_inputs()]
    for size in (1, 3):
        seeds = torch.arange(size) + 2**40
        condition, expected = eager(model, seeds, first=20)
        feed = {"seeds": seeds.numpy()}
        if condition is not None:
            feed["condition"] = condition.numpy()
            if kind == "uint8" and model.config.translates:
                levels = np.rint((condition.double().numpy() + 1) * 127.5)
                feed["condition"] = levels.astype(np.uint8)
        (drawn,) = session.run(["images"], feed)
        if kind == "float":
            np.testing.assert_allclose(drawn, expected.numpy(), rtol=0, atol=1e-4)
        else:
            assert drawn.dtype == np.uint8
            shown = drawn.repeat(3 // drawn.shape[1], 1).transpose(0, 2, 3, 1)
            gap = np.abs(shown.astype(int) - pixels(expected))
            assert gap.max() <= 1
            assert (gap > 0).mean() <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_a_program_of_torch_draws_what_the_model_draws(model: GenerativeModel, kind: Kind) -> None:
    skip_if_refused(model)
    program = TorchProgram(model, kind, {})
    parity = measure_parity(model, program, kind)
    assert parity.holds, str(parity)


@pytest.mark.slow
def test_a_file_has_no_path_of_the_machine_that_made_it(tmp_path: Path) -> None:
    import zipfile

    torch.manual_seed(0)
    model = build_model(small_config("vae"))
    OnnxProgram(model, "float", {}).write(tmp_path / "x.onnx")
    TorchProgram(model, "float", {}).write(tmp_path / "x.pt2")
    with zipfile.ZipFile(tmp_path / "x.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    for content in [(tmp_path / "x.onnx").read_bytes(), *contents]:
        for place in (ROOT, Path(torch.__file__).parents[1]):
            assert str(place).encode() not in content


def test_a_model_that_an_onnx_file_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.export.onnx_program.LARGEST_BYTES", 1000)
    model = build_model(small_config("vae"))
    with pytest.raises(UsageError, match=r"an ONNX file holds at most .* use --format pt2"):
        OnnxProgram(model, "float", {})


def test_a_model_that_cannot_be_traced_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(self: GenerativeModel, seeds: Tensor, condition: Tensor | None) -> Tensor:
        return torch.zeros(len(seeds), 1, 16, 16) + seeds.sum().item()

    model = build_model(small_config("vae"))
    monkeypatch.setattr(type(model), "draw", draw)
    with pytest.raises(UsageError) as caught:
        TorchProgram(model, "float", {})
    (line,) = str(caught.value).splitlines()
    assert line.startswith("model vae cannot be traced by torch.export: ")
    assert "use --format safetensors" in line
