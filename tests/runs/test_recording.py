"""What the drivers of a run that take over from each other on one machine leave unsent."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.runs.lease import Fence, lease_key
from orchestrator.runs.recording import own_spool
from orchestrator.storage.open import open_storage
from orchestrator.tracking import Tracker
from services.databases import create_mlflow_database
from services.ports import free_port
from support.mlflow_runs import logged_steps, start_tiny_run

pytestmark = pytest.mark.slow


def test_a_successor_sends_what_was_left_and_a_driver_that_wakes_drops_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = start_tiny_run(f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}")
    storage = open_storage(str(tmp_path / "runs"))
    first, second = (Fence(storage, "small-1", term) for term in (1, 2))
    out_of_reach = replace(run, tracking_uri=f"http://127.0.0.1:{free_port()}")
    suspended = Tracker(out_of_reach, own_spool("small-1", first), first.check)
    suspended.log_metrics({"loss": 1.0}, 1)
    suspended.log_metrics({"loss": 2.0}, 2)
    storage.put(lease_key("small-1", 2), b"{}")
    successor = Tracker(run, own_spool("small-1", second), second.check)
    suspended.log_metrics({"loss": 9.0}, 9)
    successor.log_metrics({"loss": 3.0}, 3)
    suspended.close()
    successor.close()
    assert logged_steps(MlflowClient(run.tracking_uri), run, "loss") == [1, 2, 3]
    assert "did not reach MLflow" not in caplog.text
    assert not list(tmp_path.glob("orchestrator-*/spool/*")), "both spools are gone"


@pytest.mark.parametrize("name", ["small-1", "sweeps/small-1/t002"])
def test_a_worker_that_restarts_finds_the_spool_of_its_driver(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fences = [Fence(open_storage(str(tmp_path)), name, term) for term in (1, 3)]
    for content, fence in zip(("earlier", "own"), fences, strict=True):
        folder = own_spool(name, fence)
        folder.mkdir(exist_ok=True, parents=True)
        (folder / content).touch()
    again = own_spool(name, fences[1])
    assert sorted(path.name for path in again.iterdir()) == ["earlier", "own"]
    assert [path.name for path in again.parent.iterdir()] == [f"{Path(name).name}.3"]
