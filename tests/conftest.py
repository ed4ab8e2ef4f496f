"""Fixtures that more than one test file uses."""

import os
import sys
import uuid
from collections.abc import Iterator

import pytest

from services.disks import small_disk
from services.fixtures_clouds import az, clean_cloud, cloud, gcs, running_azurite, running_gcs
from services.fixtures_jobs import load
from services.fixtures_mlflow import fragile_mlflow, running_mlflow
from services.s3 import BUCKET, S3Server, s3_server
from support import markers

__all__ = [
    "az", "clean_cloud", "cloud", "fragile_mlflow", "gcs", "load", "running_azurite", "running_gcs",
    "running_mlflow", "small_disk",
]  # fmt: skip

# Torch's threads spin while they wait, and starve each other on a small or busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
if "PYTEST_XDIST_WORKER" in os.environ:  # others use the other cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiled modules are kept even where the shell says not to. The tests start hundreds of
# processes; each would compile torch, MLflow and Ray anew, which takes up to 15 s of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

SLOWEST = (
    "three_hosts", "faults", "sweep", "ray_jobs", "nodes",
    "readme", "outages", "resume_check", "resume", "any_number_of_workers", "tracker",
)  # fmt: skip
"""Test files that take the longest, in that order."""


markers.guard_commands()


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests with servers; the slowest files first, so that all workers end together."""
    markers.add_markers(items)
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse clusters and servers in a test that is not marked for them."""
    markers.watch(item)


@pytest.fixture(scope="session")
def running_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, started once and only if a test asks for it."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a real bucket, with the environment that reaches it."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in running_s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
