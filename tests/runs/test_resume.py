"""A run whose driver was lost goes on, and ends where the uninterrupted one ends, bit for bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run
from test_run import JOB, checkpoints, the_run

from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.runs import record
from orchestrator.runs.driver import run_job
from orchestrator.runs.record import RunRecord, differences, driving, newest_unfinished
from orchestrator.storage.open import open_storage
from services.databases import ready
from support.drawings import draw_pairs
from support.fakes import without_clock

SETTINGS = ["train.images=96", "train.checkpoint_every=8", "train.log_every=4"]
SETTINGS += ["train.ema_decay=0.9", "train.validate_every=24"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("resume")
    pairs = draw_pairs(folder / "pairs", count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


def write(folder: Path, data: str) -> Path:
    folder.mkdir()
    ready(folder / "mlflow.db")
    path = folder / "small.yaml"
    path.write_text(JOB.format(data=data, folder=folder, storage=folder / "runs"))
    return path


def command(job: Path, *options: str) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets, *options]


def points(folder: Path, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every curve's points in the order they were written, but for those of the clock."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    names = without_clock(run.data.metrics)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


def test_a_killed_driver_is_taken_up_and_ends_where_the_uninterrupted_run_ends(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = write(tmp_path / "whole", data), write(tmp_path / "broken", data)
    run_job(load_job(whole, SETTINGS))
    storage = open_storage(str(broken.parent / "runs"))
    for kills in (2, 4):  # checkpoints seen before the driver is killed
        process = subprocess.Popen(command(broken, "--resume"), stderr=subprocess.DEVNULL)
        while sum(key.endswith("manifest.json") for key in storage.list()) < min(kills, 3):
            assert process.poll() is None, "it was to be killed before its end"
            time.sleep(0.02)
        process.kill()
        process.wait()
    run_job(load_job(broken, SETTINGS), resume=True)
    assert "starting one" not in capsys.readouterr().err
    one, two = the_run(whole.parent), the_run(broken.parent)
    assert two.info.status == "FINISHED"
    kept = [
        checkpoints(str(folder / "runs"), run)
        for folder, run in ((whole.parent, one), (broken.parent, two))
    ]
    states = [each.load(each.names()[-1]) for each in kept]
    assert states[0].images_seen == states[1].images_seen == 96
    assert states[0].settings == states[1].settings
    for kind in ("networks", "snapshot", "optimizers"):
        tensors = [getattr(state, kind) for state in states]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert points(broken.parent, two) == points(whole.parent, one), "each point once"
    client = mlflow.MlflowClient(f"sqlite:///{broken.parent}/mlflow.db")
    assert client.get_model_version_by_alias("small", "candidate").run_id == two.info.run_id


def test_a_finished_run_is_not_taken_up_but_a_new_one_started(data: str, tmp_path: Path) -> None:
    job = write(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    run_job(load_job(job, settings), resume=True)
    run_job(load_job(job, settings), resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert newest_unfinished(open_storage(str(job.parent / "runs")), "small") is None


def interrupted(job: Path, settings: list[str]) -> RunRecord:
    """A run that was begun and is not finished."""
    run_job(load_job(job, settings))
    storage = open_storage(str(job.parent / "runs"))
    (finished,) = [key for key in storage.list() if key.endswith("/finished.json")]
    storage.delete(finished)
    found = newest_unfinished(storage, "small")
    assert found is not None
    return found


def test_a_job_that_computes_something_else_is_refused_with_what_differs(
    data: str, tmp_path: Path
) -> None:
    job = write(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    found = interrupted(job, settings)
    changes = ["train.batch_size=8", "model.filters=8", "train.log_every=2", "cluster.workers=1"]
    with pytest.raises(UsageError) as caught:
        run_job(load_job(job, [*settings, *changes]), resume=True)
    assert str(caught.value) == (
        f"run {found.run} cannot go on with this job, which is another than it began with:\n"
        "  model.filters: 4 -> 8\n"
        "  train.batch_size: 4 -> 8\n"
        "undo the changes, or start a new run: from this one's newest checkpoint with "
        f"--init-from {job.parent}/runs/{found.run}, or from the beginning with --no-resume"
    )
    assert caught.value.exit_code == 2
    run_job(load_job(job, [*settings, "train.log_every=2"]), resume=True)
    assert the_run(job.parent).info.status == "FINISHED"


def test_another_training_set_in_its_place_is_refused(data: str, tmp_path: Path) -> None:
    job = write(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    interrupted(job, settings)
    pack_folder(draw_pairs(tmp_path / "other", count=12, size=16), str(tmp_path / "data"), size=16)
    with pytest.raises(UsageError, match=r"the training set: digest [0-9a-f]{12} -> [0-9a-f]{12}"):
        run_job(load_job(job, [*settings, f"data.train={tmp_path}/data/train"]), resume=True)


def test_an_mlflow_that_does_not_know_the_run_is_told(data: str, tmp_path: Path) -> None:
    job = write(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    found = interrupted(job, settings)
    other = f"tracking.uri=sqlite:///{ready(tmp_path / 'other.db')}"
    with pytest.raises(EnvironmentProblem, match=f"has no run {found.mlflow_run_id} to go on with"):
        run_job(load_job(job, [*settings, other]), resume=True)


def ended_by(number: signal.Signals, job: Path) -> None:
    """A run of ``job`` that ``number`` ends once it has a checkpoint."""
    process = subprocess.Popen(command(job, "--no-resume"), stderr=subprocess.DEVNULL)
    while not list(job.parent.glob("runs/*/checkpoints/*/manifest.json")):
        assert process.poll() is None, "it was to be ended before its end"
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(180)


def num_runs(job: Path) -> int:
    return len(list(job.parent.glob("runs/*/run.json")))


def test_a_lost_drivers_run_is_taken_up_by_a_plain_run_of_the_same_job_alone(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write(tmp_path / "x", data)
    ended_by(signal.SIGKILL, job)
    run_job(load_job(job, [*SETTINGS, "model.learning_rate=0.1"]))
    said = capsys.readouterr().err
    assert "is of another job (model.learning_rate: " in said
    assert f"--init-from {job.parent}/runs/small-" in said
    assert num_runs(job) == 2
    run_job(load_job(job, SETTINGS), resume=False)
    assert num_runs(job) == 3
    run_job(load_job(job, SETTINGS))
    assert "whose driver was lost; --no-resume starts a new one" in capsys.readouterr().err
    assert num_runs(job) == 3
    assert newest_unfinished(open_storage(str(job.parent / "runs")), "small") is None


def test_a_run_that_was_told_to_stop_is_left_alone_and_resume_is_named(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write(tmp_path / "x", data)
    ended_by(signal.SIGTERM, job)
    run_job(load_job(job, SETTINGS))
    assert "failed or was stopped; --resume would go on with it" in capsys.readouterr().err
    assert num_runs(job) == 2


def run_record(**changes: str) -> RunRecord:
    return RunRecord(
        **{
            "run": "small-1",
            "job": "small",
            "mlflow_run_id": "a",
            "experiment_id": "0",
            "data_digest": "d",
            **changes,
        }
    )


def test_the_newest_unfinished_run_of_that_job_is_found(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert newest_unfinished(storage, "small") is None
    for name, job in (
        ("small-1", "small"),
        ("small-2", "small"),
        ("small-3", "small"),
        ("small-big-4", "small-big"),
    ):
        run_record(run=name, job=job).announce(storage, "name: x\n")
    run_record(run="small-3").finish(storage)
    storage.put("small-9/run.json", b"no json")
    assert newest_unfinished(storage, "small") == run_record(run="small-2")


def test_a_run_that_someone_else_drives_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BEAT_S", 0.3)
    storage = open_storage(str(tmp_path))
    with (
        driving(storage, "small-1"),
        pytest.raises(UsageError, match=rf"being driven on .* by process {os.getpid()}"),
        driving(storage, "small-1"),
    ):
        pass
    with driving(storage, "small-1"):
        pass
    assert json.loads(storage.get("small-1/driver.json"))["ended"] is True


def test_a_silent_driver_of_another_machine_is_given_up_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "SILENT_S", 2.0)
    storage = open_storage(str(tmp_path))
    lost = {"host": f"not-{socket.gethostname()}", "pid": 1, "beat": 7, "ended": False}
    storage.put("small-1/driver.json", json.dumps(lost).encode())
    start = time.monotonic()
    with driving(storage, "small-1"):
        assert time.monotonic() - start >= 2
    dead = {**lost, "host": socket.gethostname(), "pid": 2**22 + 1}
    storage.put("small-1/driver.json", json.dumps(dead).encode())
    monkeypatch.setattr(record, "SILENT_S", 120.0)
    start = time.monotonic()
    with driving(storage, "small-1"):
        assert time.monotonic() - start < 60, "a process of this machine that is no more"


def test_what_may_change_is_where_a_job_runs_and_not_what_it_computes() -> None:
    before = "train: {seed: 0, log_every: 4}\ncluster: {workers: 1}\n"
    before += "data: {threads: 2, shuffle_streams: 96}\n"
    assert differences(before, before.replace("workers: 1", "workers: 8")) == []
    assert differences(before, before.replace("log_every: 4", "log_every: 9")) == []
    assert differences(before, before.replace("threads: 2", "threads: 4")) == []
    assert differences(before, f"{before}guard: {{max_rollbacks: 9, collapse: stop}}\n") == []
    assert differences(before, before.replace("shuffle_streams: 96", "shuffle_streams: 48")) == [
        "data.shuffle_streams: 96 -> 48"
    ]
    assert differences(before, before.replace("seed: 0, ", "")) == ["train.seed: 0 -> not set"]
