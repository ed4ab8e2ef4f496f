"""Sample grids of runs, fetched from MLflow for the report of a sweep."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator.errors import EnvironmentProblem
from orchestrator.tracking import fetch_grids
from services.databases import create_mlflow_database


def run_with_files_at(uri: str, location: str) -> str:
    """Create a run whose files are at ``location``; return its id."""
    client = MlflowClient(uri)
    return str(client.create_run(client.create_experiment("x", location)).info.run_id)


def test_only_the_grids_called_samples_are_fetched(tmp_path: Path) -> None:
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    run_id = run_with_files_at(uri, (tmp_path / "mlartifacts").as_uri())
    grid = Image.new("RGB", (8, 4), "red")
    for key, step in (("samples", 40), ("samples", 80), ("reconstructions", 80)):
        MlflowClient(uri).log_image(run_id, grid, key=key, step=step)
    found = fetch_grids(uri, {3: run_id}, tmp_path / "grids")
    assert sorted(found[3]) == [40, 80]
    with Image.open(found[3][80]) as fetched:
        assert fetched.size == (8, 4)


def test_a_bucket_without_credentials_is_a_problem_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    run_id = run_with_files_at(uri, "s3://bucket/files")
    with pytest.raises(EnvironmentProblem, match="credentials"):
        fetch_grids(uri, {1: run_id}, tmp_path / "grids")
