"""Models registered in a real MLflow, loaded without pickle and pulled to a folder."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.models.base import ModelConfig, build_model
from orchestrator.registry.bundle import (
    FILES,
    Source,
    load_bundle,
    read_config,
    read_notes,
    read_source,
)
from orchestrator.registry.bundle_manifest import write_manifest
from orchestrator.registry.registry import RegisteredVersion, list_models, pull, register
from orchestrator.tracking import RunRef, connect
from services.databases import create_mlflow_database
from services.mlflow_server import MlflowServer
from services.ports import free_port

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig.model_validate(
    {"name": "pix2pix", "image_size": 16, "filters": 4, "receptive_field": 16, "norm": "instance"}
)
NOTES = {"validation/l1": 0.25, "images_per_worker": 2, "job": "tiny", "data_digest": "abc"}


def new_run(uri: str) -> RunRef:
    with connect(uri) as client:
        found = client.get_experiment_by_name("registry")
        experiment = found.experiment_id if found else client.create_experiment("registry")
        return RunRef(uri, experiment, client.create_run(experiment).info.run_id)


def trained(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_model(CONFIG).inference_module().state_dict()


def register_trained(uri: str, name: str, seed: int = 0) -> RegisteredVersion:
    example = torch.rand(1, 3, 16, 16) * 2 - 1
    return register(new_run(uri), name, CONFIG, trained(seed), example=example, notes=NOTES)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite registry with models `colours` (versions 1 and 2) and `emoji` (version 1)."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{create_mlflow_database(folder / 'mlflow.db')}"
    with connect(uri) as client:
        client.create_experiment("registry", artifact_location=(folder / "artifacts").as_uri())
    for seed, name in enumerate(("colours", "colours", "emoji")):
        register_trained(uri, name, seed)
    return uri


def translate(weights: dict[str, Tensor], drawings: Tensor, seed: int) -> Tensor:
    model = build_model(CONFIG)
    model.inference_module().load_state_dict(weights)
    return model.sample(torch.full((len(drawings),), seed), drawings)


def outputs_of(run: Run) -> list[LoggedModelOutput]:
    assert run.outputs is not None
    return run.outputs.model_outputs


LOAD_WITH_MLFLOW = """\
import importlib.util, sys
sys.path[:] = [path for path in sys.path if path and path != {repository!r}]
assert importlib.util.find_spec("orchestrator") is None
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/served@candidate")
drawings = numpy.linspace(-1, 1, 3 * 3 * 16 * 16, dtype=numpy.float32).reshape(3, 3, 16, 16)
numpy.save("images.npy", model.predict(drawings, params={{"seed": 7}}))
numpy.save("default.npy", model.predict(drawings))
assert [str(t) for t in model.metadata.signature.inputs] == ["Tensor('float32', (-1, 3, 16, 16))"]
assert model.input_example.shape == (2, 3, 16, 16)
assert not [m for m in sys.modules if m.partition(".")[0] in ("ray", "torchvision")]
ours = [m for m in sys.modules if m.startswith("orchestrator.")]
assert [m for m in ours if not m.startswith(("orchestrator.models", "orchestrator.bounds"))] == []
"""


@pytest.mark.server
@pytest.mark.slow
def test_mlflow_loads_a_model_without_pickle_and_without_the_project(
    running_mlflow: MlflowServer, tmp_path: Path
) -> None:
    import numpy as np

    version = register_trained(running_mlflow.uri, "served", seed=5)
    assert version == RegisteredVersion("served", 1)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": running_mlflow.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    code = LOAD_WITH_MLFLOW.format(repository=str(REPOSITORY))
    finished = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:mlflow.pyfunc", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    drawings = torch.from_numpy(
        np.linspace(-1, 1, 3 * 3 * 16 * 16, dtype=np.float32).reshape(3, 3, 16, 16)
    )
    for file, seed in (("images.npy", 7), ("default.npy", 0)):
        images = torch.from_numpy(np.load(tmp_path / file))
        torch.testing.assert_close(images, translate(trained(5), drawings, seed))

    folder = pull("served", tmp_path / "pulled", running_mlflow.uri)
    assert load_file(folder / "weights.safetensors").keys() == trained(5).keys()


def test_a_version_has_config_and_notes_and_no_pickle(registry: str, tmp_path: Path) -> None:
    client = MlflowClient(registry)
    version = client.get_model_version_by_alias("colours", "candidate")
    assert int(version.version) == 2
    assert version.tags["note.validation/l1"] == "0.25"
    assert json.loads(version.tags["config"])["filters"] == 4
    assert "digest `abc`" in str(version.description)
    files = [
        p for p in (Path(registry.removeprefix("sqlite:///")).parent).rglob("*") if p.is_file()
    ]
    assert {p.name for p in files} >= {"MLmodel", "weights.safetensors", "pix2pix.py"}
    assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    requirements = next(p for p in files if p.name == "requirements.txt").read_text().split()
    packages = [line.partition("==")[0] for line in requirements]
    assert packages == ["mlflow", "torch", "pydantic", "safetensors", "numpy"]
    assert version.run_id is not None
    (output,) = outputs_of(client.get_run(version.run_id))
    assert output.model_id in str(version.source)


@pytest.mark.server
@pytest.mark.slow
def test_registration_waits_for_a_server_that_restarts(
    fragile_mlflow: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(fragile_mlflow.uri)
    fragile_mlflow.kill()

    restart = threading.Timer(4, fragile_mlflow.start)
    restart.start()
    patient = replace(run, retry_timeout_s=180)
    made = register(patient, "patient", CONFIG, trained(0), example=None, notes=NOTES)
    restart.join()
    assert made == RegisteredVersion("patient", 1)
    assert [v.version for v in list_models(fragile_mlflow.uri) if v.name == "patient"] == [1]
    printed = capsys.readouterr().err
    assert printed.count("registering patient: retrying for up to 180 s: MLflow at") == 1


@pytest.mark.parametrize("lost", ["log_outputs", "create_model_version"])
def test_a_lost_response_does_not_register_a_model_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    with connect(uri) as client:
        client.create_experiment("registry", artifact_location=(tmp_path / "files").as_uri())
    run, call, calls = new_run(uri), getattr(MlflowClient, lost), []

    def lose_first_response(*args: Any, **kwargs: Any) -> Any:
        response = call(*args, **kwargs)
        calls.append(lost)
        if len(calls) == 1:
            raise ConnectionResetError("the connection was lost")
        return response

    monkeypatch.setattr(MlflowClient, lost, lose_first_response)
    made = register(run, "once", CONFIG, trained(0), example=None, notes=NOTES)
    assert made == RegisteredVersion("once", 1)
    assert [(v.version, v.aliases) for v in list_models(uri)] == [(1, ("candidate",))]
    assert len(outputs_of(MlflowClient(uri).get_run(run.run_id))) == 1


def test_an_unreachable_or_refusing_server_is_an_error(
    registry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = RunRef(f"http://127.0.0.1:{free_port()}", "1", "abc", retry_timeout_s=1.5)
    with pytest.raises(EnvironmentProblem, match="does not answer"):
        register(gone, "x", CONFIG, trained(0), example=None, notes=NOTES)
    assert "retrying for" in capsys.readouterr().err
    unknown = RunRef(registry, "987654", "abc")
    with pytest.raises(EnvironmentProblem, match="987654"):
        register(unknown, "x", CONFIG, trained(0), example=None, notes=NOTES)
    assert "retrying for" not in capsys.readouterr().err


def test_models_are_listed_with_their_aliases_newest_first(registry: str) -> None:
    listed = list_models(registry)
    assert [(v.name, v.version, v.aliases) for v in listed] == [
        ("colours", 2, ("candidate",)),
        ("colours", 1, ()),
        ("emoji", 1, ("candidate",)),
    ]
    assert listed[0].description.startswith("# colours\n\n[pix2pix](https://arxiv.org/abs/")
    assert listed[0].created > listed[1].created
    assert listed[0].run_id != listed[1].run_id


@pytest.mark.parametrize(
    ("spec", "version", "seed"),
    [("colours", 2, 1), ("colours@candidate", 2, 1), ("colours/1", 1, 0), ("emoji", 1, 2)],
)
def test_a_model_is_pulled_by_name_alias_or_version(
    registry: str, tmp_path: Path, spec: str, version: int, seed: int
) -> None:
    folder = pull(spec, tmp_path / "new" / "folder", registry)
    written = {"README.md", "config.json", "manifest.json", "notes.json", "source.json"}
    assert {path.name for path in folder.iterdir()} == {*written, "weights.safetensors"}
    assert read_source(folder) == Source(spec.partition("@")[0].partition("/")[0], version)
    assert read_config(folder) == CONFIG
    notes = read_notes(folder)
    assert {key: notes.pop(key) for key in ("mlflow_run", "format")}["format"] == 2
    assert notes == NOTES
    loaded = load_bundle(folder).inference_module().state_dict()
    torch.testing.assert_close(dict(loaded), trained(seed))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("colors", "no registered model is called 'colors'; did you mean 'colours'? There are"),
        ("colours@champion", "colours has no alias 'champion'; its aliases: candidate"),
        ("colours/3", "colours has no version 3; its versions: 2, 1"),
        (
            "colours/latest",
            "'colours/latest' is not a valid model; use NAME, NAME@alias or NAME/version",
        ),
        ("", "'' is not a valid model; use NAME, NAME@alias or NAME/version"),
    ],
)
def test_an_unknown_name_alias_or_version_is_answered_with_the_known_ones(
    registry: str, tmp_path: Path, spec: str, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        pull(spec, tmp_path / "dest", registry)
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("missing", ["weights.safetensors", "artifacts"])
def test_a_model_of_another_tool_is_refused(tmp_path: Path, missing: str) -> None:
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    files = tmp_path / "sklearn"
    pickle = files / ("model.pkl" if missing == "artifacts" else "artifacts/model.pkl")
    pickle.parent.mkdir(parents=True)
    pickle.touch()
    with connect(uri) as client:
        client.create_registered_model("forest")
        client.create_model_version("forest", source=str(files))
    expected = f"forest, version 1 was not registered by orchestrator: it has no {missing}"
    with pytest.raises(UsageError, match=re.escape(expected)):
        pull("forest", tmp_path / "dest", uri)
    assert not (tmp_path / "dest").exists()


def test_a_folder_that_is_not_empty_is_refused(registry: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        pull("colours", tmp_path, registry)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_database_is_not_created(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with pytest.raises(UsageError, match="there is no MLflow database at"):
        list_models(f"sqlite:///{database}")
    assert not database.exists()
    with pytest.raises(EnvironmentProblem, match="does not answer"):
        list_models(f"http://127.0.0.1:{free_port()}")


def test_weights_that_do_not_fit_their_config_are_refused(registry: str, tmp_path: Path) -> None:
    folder = pull("emoji", tmp_path / "emoji", registry)
    weights = load_file(folder / "weights.safetensors")
    first = next(iter(weights))
    renamed: dict[str, Any] = {f"other.{k}" if k == first else k: v for k, v in weights.items()}
    save_file(renamed, folder / "weights.safetensors")
    write_manifest(folder, FILES)  # as someone who made the folder by hand
    with pytest.raises(DataError, match=f"Missing key.*{re.escape(first)}"):
        load_bundle(folder)
    (folder / "weights.safetensors").write_bytes(b"broken")
    write_manifest(folder, FILES)
    with pytest.raises(DataError, match="is corrupt"):
        load_bundle(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match=r"weights\.safetensors does not exist"):
        load_bundle(folder)
