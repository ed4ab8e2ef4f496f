"""A run whose model cannot be registered: the same command registers it later, without training."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.config.load import load_job
from orchestrator.errors import EnvironmentProblem
from orchestrator.registry import registry
from orchestrator.runs.driver import run_job, train_in_process
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.training.loop import Outcome
from services.disks import fill
from support.small_runs import only_run, pack_pairs, write_job

pytestmark = pytest.mark.slow

SETTINGS = ["train.images=16", "train.log_every=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("registration"))


def versions(job: Path) -> list[str]:
    found = MlflowClient(f"sqlite:///{job.parent}/mlflow.db").search_model_versions()
    return [version.run_id or "" for version in found]


def steps_of(job: Path) -> list[int]:
    run = only_run(job.parent).info.run_id
    client = MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    return [point.step for point in client.get_metric_history(run, "generator/loss")]


@pytest.mark.parametrize("free_bytes", [0, 20_000], ids=["no byte free", "some bytes free"])
def test_a_full_temporary_disk_is_one_line_and_the_same_command_registers_without_training(
    data: str,
    tmp_path: Path,
    small_disk: Path,
    free_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = write_job(tmp_path / "x", data)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))

    def train_and_fill(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        outcome = train_in_process(context, show, stop)
        ballast = fill(small_disk)
        os.truncate(ballast, ballast.stat().st_size - free_bytes)
        return outcome

    for _ in range(2):  # the second time, there is nothing left to train
        with pytest.raises(EnvironmentProblem) as caught:
            run_job(load_job(job, SETTINGS), train_and_fill)
        message = str(caught.value)
        assert "\n" not in message
        assert (
            f"{small_disk} has no room for the files of small to register: its disk is full; "
            in message
        )
        assert message.endswith("set TMPDIR to another folder, and run the same command again")
        assert only_run(job.parent).info.status == "FAILED"
        assert versions(job) == []
        (small_disk / "ballast").unlink()
    steps = steps_of(job)
    capsys.readouterr()
    monkeypatch.undo()  # a place with room
    run_job(load_job(job, SETTINGS))
    log = capsys.readouterr().err
    assert "which is trained and not registered" in log
    assert versions(job) == [only_run(job.parent).info.run_id], "one run, one version"
    assert steps_of(job) == steps == [4, 8, 12, 16]
    assert only_run(job.parent).info.status == "FINISHED"
    run_job(load_job(job, SETTINGS))
    assert len(versions(job)) == 2, "a finished run is not resumed"


def test_whatever_ends_a_trained_run_another_job_does_not_resume_it(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path / "x", data)

    def refuse(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "register", refuse)
        with pytest.raises(KeyboardInterrupt):
            run_job(load_job(job, SETTINGS))
    capsys.readouterr()
    run_job(load_job(job, [*SETTINGS, "train.seed=5"]))
    assert "starting a new run: the job of run" in capsys.readouterr().err
    assert len(list(job.parent.glob("runs/small-*"))) == 2
