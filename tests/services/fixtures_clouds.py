"""Fixtures with an empty place in Google Cloud Storage and in Azure."""

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from orchestrator.errors import OrchestratorError

from . import azurite as azure
from . import gcs as google
from .azurite import AzureServer, azurite, find_azurite
from .gcs import GoogleServer, google_server


@pytest.fixture(scope="session")
def running_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    """The server of gcs.py, started once and only if a test asks for it."""
    with google_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def running_azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """Azurite, started once and only if a test asks for it."""
    if (program := find_azurite()) is None:
        pytest.skip(f"azurite-blob is not installed; {azure.HOW}")
    with azurite(program, tmp_path_factory.mktemp("azurite") / "data") as server:
        yield server


@pytest.fixture
def clean_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what this machine's user has set for the two clouds."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "AZURE_", "AZURITE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def gcs(running_gcs: GoogleServer, clean_cloud: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket, with the environment that reaches it."""
    for name, value in running_gcs.environment.items():
        monkeypatch.setenv(name, value)
    return f"gs://{google.BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def az(running_azurite: AzureServer, clean_cloud: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a container, with the environment that reaches it."""
    for name, value in running_azurite.environment.items():
        monkeypatch.setenv(name, value)
    return f"az://{azure.CONTAINER}/{uuid.uuid4().hex}"


@pytest.fixture(params=["gcs", pytest.param("az", marks=pytest.mark.server)])
def cloud(request: pytest.FixtureRequest) -> str:
    """An empty place in each of the two clouds."""
    place: str = request.getfixturevalue(request.param)
    return place


def error_of(use: Callable[[], object]) -> OrchestratorError:
    with pytest.raises(OrchestratorError) as caught:
        use()
    return caught.value
