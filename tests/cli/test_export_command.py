"""`orchestrator models export`, on versions registered in a real MLflow."""

import json
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from orchestrator.cli import app
from orchestrator.errors import UsageError
from orchestrator.export.export_model import PROGRAMS, export_program
from orchestrator.export.torch_program import TorchProgram
from orchestrator.file_sums import sum_file
from orchestrator.models.base import GenerativeModel, build_model
from orchestrator.registry.bundle import WEIGHTS, load_bundle, write_bundle
from orchestrator.registry.registry import pull
from support.packed_sets import write_set
from support.registries import make_registry, register_random
from support.small import small_config

MODELS = ("pix2pix", "vae", "pixelcnn")


@dataclass
class Export:
    """Runs the command in this process."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    uri: str

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Return the exit code and what stderr says."""
        words = ["models", "export", *map(str, arguments), "--tracking-uri", self.uri]
        self.monkeypatch.setattr("sys.argv", ["orchestrator", *words])
        with pytest.raises(SystemExit) as end:
            app.main()
        printed = self.capsys.readouterr()
        assert printed.out == ""
        return int(end.value.code or 0), printed.err

    def works(self, *arguments: object) -> str:
        code, err = self(*arguments)
        assert code == 0, err
        return err

    def fails(self, code: int, *arguments: object) -> str:
        """Return the line of the error, the last one of at most two."""
        found, err = self(*arguments)
        assert found == code, err
        *before, line = err.splitlines()
        assert before in ([], [f"exporting {arguments[0]}, which takes up to some minutes"])
        assert line.startswith("error: ")
        return line


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mlflow.db, which has a version of each of MODELS, and sets for two of them."""
    folder = tmp_path_factory.mktemp("export")
    uri = make_registry(folder)
    for name in MODELS:
        register_random(uri, name, small_config(name), {"job": name})
    write_set(folder / "pairs", small_config("pix2pix"), 3)
    write_set(folder / "large", small_config("pix2pix", image_size=32), 3)
    return folder


@pytest.fixture
def export(
    registry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Export:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Export(monkeypatch, capsys, f"sqlite:///{registry}/mlflow.db")


@pytest.mark.slow
def test_a_registered_translator_is_an_onnx_file_of_8_bit_images(
    registry: Path, tmp_path: Path, export: Export
) -> None:
    said = export.works(
        "pix2pix@candidate", "x.onnx", "--format", "onnx", "--uint8", "--data", registry / "pairs"
    )
    assert "x.onnx: 0.1 MB, uint8 images; on random inputs and the set's 0 % of the" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    session: Any = onnxruntime.InferenceSession("x.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    pulled = pull("pix2pix", tmp_path / "pulled", export.uri)
    assert facts == {
        "orchestrator.name": "pix2pix",
        "orchestrator.version": "1",
        "orchestrator.model": "pix2pix",
        "orchestrator.kind": "uint8",
        "orchestrator.image_size": "16",
        "orchestrator.weights_sha256": sum_file(pulled / WEIGHTS).sha256,
        "orchestrator.inputs": facts["orchestrator.inputs"],
        "orchestrator.outputs": facts["orchestrator.outputs"],
    }
    assert json.loads(facts["orchestrator.inputs"]) == [
        {"name": "seeds", "dtype": "int64", "shape": ["batch"], "range": [0, 2**53 - 1]},
        {"name": "condition", "dtype": "uint8", "shape": ["batch", 3, 16, 16], "range": [0, 255]},
    ]
    given = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8)
    (drawn,) = session.run(None, {"seeds": np.array([5, 6]), "condition": given})
    images = load_bundle(pulled).sample(
        torch.tensor([5, 6]), torch.from_numpy(given.astype(np.float32) / 127.5 - 1)
    )
    expected = np.rint((images.numpy() + 1) * 127.5)
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.slow
def test_a_pulled_folder_is_a_program_of_torch(tmp_path: Path, export: Export) -> None:
    pull("vae", tmp_path / "pulled", export.uri)
    said = export.works("pulled", "x.pt2", "--format", "pt2")
    (found,) = re.findall(r"float images; on random inputs largest difference (\S+) \(limit", said)
    assert 0 <= float(found) < 1e-6
    with zipfile.ZipFile("x.pt2") as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("extra/orchestrator.json")]
        facts = json.loads(archive.read(name))
    assert (facts["orchestrator.name"], facts["orchestrator.version"]) == ("vae", "1")


def test_exported_weights_are_a_folder_that_draws_the_same_images(
    tmp_path: Path, export: Export
) -> None:
    (tmp_path / "empty").mkdir()
    assert "next:\n  orchestrator sample empty" in export.works(
        "pixelcnn/1", "empty", "--format", "safetensors"
    )
    pulled = load_bundle(pull("pixelcnn", tmp_path / "pulled", export.uri))
    seeds = torch.arange(3)
    assert torch.equal(load_bundle(tmp_path / "empty").sample(seeds), pulled.sample(seeds))
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "pulled").stat().st_mode


def test_what_cannot_be_exported_is_one_line(
    registry: Path, tmp_path: Path, export: Export
) -> None:
    onnx = ("--format", "onnx")
    (tmp_path / "there").write_text("mine")
    assert "there exists already: give a new file" in export.fails(2, "vae", "there", *onnx)
    line = export.fails(2, "vae", "there", "--format", "safetensors")
    assert "there exists already: give a new or an empty folder" in line
    (tmp_path / "link").symlink_to("nowhere")
    assert "link exists already" in export.fails(2, "vae", "link", *onnx)
    assert "there is no folder no; make it" in export.fails(2, "vae", "no/x.onnx", *onnx)
    assert "there is no folder there" in export.fails(2, "vae", "there/x.onnx", *onnx)
    assert "vae has no version 7; its versions: 1" in export.fails(2, "vae/7", "x", *onnx)
    assert "vae has no alias 'best'" in export.fails(2, "vae@best", "x", *onnx)
    assert "no registered model is called 'va'; did you mean 'vae'" in export.fails(
        2, "va", "x", *onnx
    )
    line = export.fails(2, "pixelcnn", "x", *onnx)
    assert "pixelcnn is exported as safetensors alone: it draws value by value" in line
    line = export.fails(2, "vae", "x", "--format", "safetensors", "--uint8")
    assert "--uint8 and --data go with --format onnx, pt2 or browser, not with" in line
    line = export.fails(2, "vae", "x", *onnx, "--data", registry / "pairs")
    assert "model vae draws from noise alone" in line
    line = export.fails(4, "pix2pix", "x", *onnx, "--data", registry / "large")
    assert "has images of 32 px, but the model draws 16 px" in line
    line = export.fails(4, "pix2pix", "x", *onnx, "--data", registry / "nowhere")
    assert "there is no packed set" in line
    code, said = export("vae", "x", "--format", "tflite")
    assert code == 2
    assert "'tflite' is not one of" in said
    assert (tmp_path / "there").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_damaged_version_is_not_exported(tmp_path: Path, export: Export) -> None:
    pull("vae", tmp_path / "pulled", export.uri)
    path = tmp_path / "pulled" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for format_ in ("onnx", "pt2", "safetensors"):
        line = export.fails(4, "pulled", "x", "--format", format_)
        assert f"pulled/{WEIGHTS} is damaged: its sha256 is" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "uint8"), [("onnx", []), ("pt2", []), ("pt2", ["--uint8"])])
def test_an_export_that_draws_other_images_is_refused_with_the_numbers(
    tmp_path: Path,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
    format_: str,
    uint8: list[str],
) -> None:
    """The export is broken by a model that draws other images while it is traced."""
    model: Any = type(build_model(small_config("vae")))
    draw = model.draw

    def broken(self: GenerativeModel, seeds: Tensor, condition: Tensor | None) -> Tensor:
        images: Tensor = draw(self, seeds, condition)
        return images - 0.125 if torch.compiler.is_exporting() else images

    monkeypatch.setattr(model, "draw", broken)
    line = export.fails(5, "vae@candidate", "x", "--format", format_, *uint8)
    assert f"vae/1 is not exported as {format_}: it draws other images than the model: " in line
    numbers = "by at most 16 (limits 0.1 % and 1)" if uint8 else "0.13 (limit 0.0001)"
    assert numbers in line
    assert list(tmp_path.iterdir()) == []


def test_weights_that_draw_other_images_once_read_back_are_refused(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_zeros(folder: Path, config: Any, weights: Any, notes: Any, card: Any) -> None:
        write_bundle(folder, config, {key: x * 0 for key, x in weights.items()}, notes, card)

    monkeypatch.setattr("orchestrator.export.weights_folder.write_bundle", write_zeros)
    line = export.fails(5, "vae", "x", "--format", "safetensors")
    assert "the model read back from the exported weights draws other images: largest" in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = export.fails(3, "vae", "x", "--format", "onnx")
    assert "--format onnx needs the package onnxscript; get it with `pip install -e" in line
    export.works("vae", "x.pt2", "--format", "pt2")


def test_a_destination_that_appears_meanwhile_is_kept(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = pull("vae", tmp_path / "pulled", export.uri)

    class Slow(TorchProgram):
        def write(self, path: Path) -> None:
            super().write(path)
            (tmp_path / "x.pt2").write_text("of another")

    monkeypatch.setitem(PROGRAMS, "pt2", Slow)
    with pytest.raises(UsageError, match="exists already"):
        export_program(load_bundle(pulled), "pt2", "float", pulled, tmp_path / "x.pt2")
    assert (tmp_path / "x.pt2").read_text() == "of another"
