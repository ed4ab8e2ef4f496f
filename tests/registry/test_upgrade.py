"""A version of an older format is refused, never drawn otherwise, and can be registered anew."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.models.base import GenerativeModel, build_model
from orchestrator.registry.bundle import load_bundle, read_notes
from orchestrator.registry.registry import RegisteredVersion, list_models, pull
from orchestrator.registry.upgrade import upgrade
from orchestrator.tracking import connect
from services.databases import create_mlflow_database
from support.old_bundles import write_old_bundle
from support.small import small_batch, small_config


def model(name: str = "pix2pix") -> GenerativeModel:
    torch.manual_seed(3)
    return build_model(small_config(name))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A registry with version 1 of `old` as 0.2.0 registered it."""
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    write_old_bundle(tmp_path / "version/artifacts", model())
    with connect(uri) as client:
        files = (tmp_path / "files").as_uri()
        run = client.create_run(client.create_experiment("x", artifact_location=files))
        client.create_registered_model("old")
        source = (tmp_path / "version").as_uri()
        client.create_model_version("old", source=source, run_id=run.info.run_id)
    return uri


@pytest.mark.parametrize(
    ("format_", "what_to_do"),
    [
        (
            1,
            "orchestrator 0.2.0, or register its version anew with `orchestrator models upgrade`",
        ),
        (3, "orchestrator newer than this one"),
    ],
)
def test_a_pulled_folder_of_another_format_is_refused_with_the_version_that_draws_it(
    tmp_path: Path, format_: int, what_to_do: str
) -> None:
    write_old_bundle(tmp_path, model(), format_)
    with pytest.raises(EnvironmentProblem) as error:
        load_bundle(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} has format {format_}, and this version of the orchestrator draws format 2, in "
        f"which a seed gives another image; draw it with {what_to_do}"
    )


@pytest.mark.slow
def test_sample_refuses_an_old_folder_in_one_line_with_exit_code_3(tmp_path: Path) -> None:
    write_old_bundle(tmp_path / "old", model("vae"))
    command = [sys.executable, "-m", "orchestrator", "sample", "old"]
    ended = subprocess.run(
        [*command, "--num-images", "2", "--output", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3
    assert re.fullmatch(r"error: old has format 1, .*\n", ended.stderr)
    assert not (tmp_path / "out").exists()


def test_an_old_version_is_registered_anew_with_its_weights(uri: str, tmp_path: Path) -> None:
    command = re.escape(f"`orchestrator models upgrade old/1 --tracking-uri {uri}`")
    with pytest.raises(EnvironmentProblem, match=f"^old, version 1 has format 1.*{command}"):
        pull("old", tmp_path / "pulled", uri)
    assert not (tmp_path / "pulled").exists()

    assert upgrade("old", uri) == RegisteredVersion("old", 2)
    listed = list_models(uri)
    assert [(v.version, v.aliases) for v in listed] == [(2, ("candidate",)), (1, ())]
    assert listed[0].run_id == listed[1].run_id
    folder = pull("old@candidate", tmp_path / "pulled", uri)
    assert read_notes(folder)["upgraded_from"] == "old/1"
    assert read_notes(folder)["validation/l1"] == 0.25
    pulled, own = load_bundle(folder), model()
    batch = small_batch(own.config, 3)
    images = [m.sample(torch.arange(3), batch.condition) for m in (pulled, own)]
    assert torch.equal(*images)
    assert MlflowClient(uri).get_model_version("old", "1").source == (
        (tmp_path / "version").as_uri()
    )


def test_a_version_of_this_format_is_not_upgraded(uri: str) -> None:
    upgrade("old/1", uri)
    with pytest.raises(UsageError, match=r"^old, version 2 has format 2: there is nothing to"):
        upgrade("old", uri)
    with pytest.raises(UsageError, match="old has no version 7; its versions: 2, 1"):
        upgrade("old/7", uri)
