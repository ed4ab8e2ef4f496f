"""Fixtures around a real MLflow server."""

from collections.abc import Iterator

import pytest

from .mlflow_server import MlflowServer, mlflow_server


@pytest.fixture(scope="session")
def running_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server, started once and only if a test uses it."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def fragile_mlflow(running_mlflow: MlflowServer) -> Iterator[MlflowServer]:
    """The same server, for a test that kills it; it is restarted for the next test."""
    yield running_mlflow
    running_mlflow.start()
