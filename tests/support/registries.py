"""A model registry in a folder, with versions that have random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.models.base import ModelConfig, build_model
from orchestrator.registry.registry import RegisteredVersion, register
from orchestrator.tracking import RunRef, connect
from services.databases import create_mlflow_database

ARTIFACTS = "artifacts"
"""Folder of the files of all versions."""


def make_registry(folder: Path) -> str:
    """Make an MLflow database with an experiment; return its tracking URI."""
    uri = f"sqlite:///{create_mlflow_database(folder / 'mlflow.db')}"
    with connect(uri) as client:
        client.create_experiment("x", artifact_location=(folder / ARTIFACTS).as_uri())
    return uri


def register_random(
    uri: str, name: str, config: ModelConfig, notes: Mapping[str, Any]
) -> RegisteredVersion:
    """Register a model with the weights that seed 0 gives, from a new run."""
    torch.manual_seed(0)
    weights = build_model(config).inference_module().state_dict()
    with connect(uri) as client:
        found = client.get_experiment_by_name("x")
        assert found is not None
        run = client.create_run(found.experiment_id).info.run_id
    ref = RunRef(uri, found.experiment_id, run)
    return register(ref, name, config, weights, example=None, notes=notes)
