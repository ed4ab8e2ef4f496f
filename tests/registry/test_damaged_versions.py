"""A damaged model is refused wherever it is used: it would draw other pictures without an error."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow.pyfunc.model import PythonModelContext
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.errors import DataError, UsageError
from orchestrator.file_sums import sum_file
from orchestrator.models.base import ModelConfig, build_model
from orchestrator.registry.bundle import CARD, FILES, load_bundle, write_bundle
from orchestrator.registry.bundle_manifest import MANIFEST
from orchestrator.registry.pyfunc_model import ImageModel
from orchestrator.registry.registry import pull
from support.registries import ARTIFACTS, make_registry, register_random

CONFIG = ModelConfig.model_validate({"name": "vae", "image_size": 8, "latent": 2, "hidden": [4]})
NOTES = {"job": "tiny", "data_digest": "abc"}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(CONFIG).inference_module().state_dict()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", CONFIG, weights(), NOTES)
    return tmp_path / "bundle"


def flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_200_of_200_flipped_bits_are_refused(bundle: Path, tmp_path: Path) -> None:
    rng, refused = random.Random(7), 0
    sizes = [(bundle / name).stat().st_size for name in (*FILES, MANIFEST)]
    for number in range(200):
        damaged = tmp_path / "damaged"
        shutil.copytree(bundle, damaged)
        # Half of them by size, as a disk flips them; half in any file.
        names = (*FILES, MANIFEST)
        name = rng.choices(names, sizes)[0] if number % 2 else rng.choice(names)
        flip_a_bit(damaged / name, rng)
        with pytest.raises(DataError) as caught:
            load_bundle(damaged)
        assert caught.value.exit_code == 4
        refused += 1
        shutil.rmtree(damaged)
    assert refused == 200
    load_bundle(bundle)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"[" * 100_000), "damaged"),
    ],
    ids=["cut", "empty", "nested"],
)
def test_a_file_of_another_length_is_refused(
    bundle: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(bundle / name)
    with pytest.raises(DataError, match=f"{message}.*pull the model again"):
        load_bundle(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config\.json does not exist; pull the model again"):
        load_bundle(bundle)


def test_a_model_without_its_manifest_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json.*pull the model again"):
        load_bundle(bundle)


def test_a_manifest_that_leaves_a_file_out_is_refused(bundle: Path, tmp_path: Path) -> None:
    """One that was written for other files, whose hashes are right."""
    from orchestrator.registry.bundle_manifest import write_manifest

    write_manifest(bundle, FILES[:2])
    with pytest.raises(DataError, match="not what was written"):
        load_bundle(bundle)


def test_the_sum_of_a_file_is_its_size_and_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    found = sum_file(path)
    assert found.bytes == 3
    # FIPS 180-4, the example of one block.
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def load_with_mlflow(model: Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Load a pyfunc and draw two images in a process of its own: MLflow changes its sys.path."""
    code = "import sys, mlflow, numpy; model = mlflow.pyfunc.load_model(sys.argv[1]); "
    code += "print(len(model.predict(numpy.array([2]))))"
    return subprocess.run(
        [sys.executable, "-c", code, str(model)],
        cwd=cwd,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )


def register_tiny(folder: Path) -> tuple[str, Path]:
    """Register a model; return the tracking URI and the folder of its files."""
    uri = make_registry(folder)
    register_random(uri, "tiny", CONFIG, NOTES)
    (stored,) = (folder / ARTIFACTS).rglob("artifacts/weights.safetensors")
    return uri, stored.parent


@pytest.mark.slow
def test_200_of_200_flipped_bits_of_a_version_are_refused_by_pull_sample_and_pyfunc(
    tmp_path: Path,
) -> None:
    uri, stored = register_tiny(tmp_path)
    files = [stored / name for name in (*FILES, CARD, MANIFEST)]
    rng, sizes = random.Random(11), [path.stat().st_size for path in files]
    context = PythonModelContext({path.stem: str(path) for path in files}, None)
    sample = ["sample", "tiny", "--num-images", "2", "--output", str(tmp_path / "images")]
    sample += ["--tracking-uri", uri]
    refused = {"pull": 0, "sample": 0, "pyfunc": 0}
    for number in range(200):
        path = rng.choices(files, sizes)[0] if number % 2 else rng.choice(files)
        intact = path.read_bytes()
        flip_a_bit(path, rng)
        with pytest.raises(DataError) as caught:
            pull("tiny", tmp_path / "pulled", uri)
        refused["pull"] += caught.value.exit_code == 4
        error = CliRunner().invoke(app, sample).exception
        refused["sample"] += isinstance(error, DataError) and error.exit_code == 4
        with pytest.raises(ValueError, match="of this model is damaged"):
            ImageModel().load_context(context)
        refused["pyfunc"] += 1
        path.write_bytes(intact)
    assert refused == {"pull": 200, "sample": 200, "pyfunc": 200}
    ImageModel().load_context(context)
    assert CliRunner().invoke(app, sample).exit_code == 0
    assert pull("tiny", tmp_path / "pulled", uri).is_dir()


@pytest.mark.slow
def test_a_registered_version_that_was_damaged_is_neither_pulled_nor_loaded_by_mlflow(
    tmp_path: Path,
) -> None:
    uri, folder = register_tiny(tmp_path)
    stored = folder / "weights.safetensors"
    loaded = load_with_mlflow(stored.parents[1], tmp_path)
    assert (loaded.returncode, loaded.stdout) == (0, "2\n"), loaded.stderr

    flip_a_bit(stored, random.Random(1))
    with pytest.raises(DataError, match=r"^tiny, version 1: weights\.safetensors is damaged: "):
        pull("tiny", tmp_path / "pulled", uri)
    assert not (tmp_path / "pulled").exists()
    refused = load_with_mlflow(stored.parents[1], tmp_path)
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("ValueError: weights.safetensors of this model is damaged")
    command = [sys.executable, "-m", "orchestrator", "sample", "tiny", "--num-images", "2"]
    command += ["--output", str(tmp_path / "images"), "--tracking-uri", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: tiny, version 1: weights.safetensors is damaged: its sha256 is")
    assert not (tmp_path / "images").exists()
