"""Runs, metrics and pictures in a real MLflow: a server that dies, and a SQLite file."""

import json
import pickle
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from orchestrator.config.job import Job
from orchestrator.config.paths import to_absolute_tracking_uri, resolve_paths
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.tracking import RunRef, Tracker, finish_run, replay, run_url, start_run
from orchestrator.tracking.client import artifact_errors
from services.databases import ready
from services.mlflow_server import MlflowServer
from services.ports import free_port

BLOCKED_S = 0.25
"""A call that waits for a server takes longer than this; one to the disk, far less."""


def job_for(uri: str, train: str = "s3://sets/train", retry_timeout_s: float = 0) -> Job:
    return Job.model_validate(
        {
            "name": "tiny",
            "model": {"name": "pix2pix", "image_size": 16, "filters": 4, "receptive_field": 16},
            "data": {"train": train},
            "train": {"epochs": 1, "batch_size": 2},
            "tracking": {"uri": uri, "retry_timeout_s": retry_timeout_s},
        }
    )


RENDERED = """\
name: tiny
model: {name: pix2pix, image_size: 16, betas: [0.5, 0.999]}
data: {train: s3://sets/train, validation: null}
train: {epochs: 1, learning_rate: 1e-4}
tracking: {uri: "http://robot:geheim@mlflow.example:5000"}
"""
AS_GIVEN = "# tiny\nname: tiny\ntracking: {uri: 'http://robot:geheim@mlflow.example:5000'}\n"


def start(uri: str, retry_timeout_s: float = 60, run_name: str = "tiny-1") -> RunRef:
    return start_run(
        resolve_paths(job_for(uri, retry_timeout_s=retry_timeout_s)),
        rendered=RENDERED,
        text=AS_GIVEN,
        file_name="jobs/tiny.yaml",
        digest="d" * 64,
        run_name=run_name,
    )


@pytest.fixture
def run(running_mlflow: MlflowServer) -> RunRef:
    return start(running_mlflow.uri)


@pytest.fixture
def client(running_mlflow: MlflowServer) -> MlflowClient:
    return MlflowClient(running_mlflow.uri)


@pytest.fixture
def picture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(24 * 24 * 3, dtype=np.uint32).reshape(24, 24, 3).astype(np.uint8)


def steps(client: MlflowClient, run: RunRef, key: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.run_id, key)]


def picture_files(client: MlflowClient, run: RunRef) -> list[str]:
    return sorted(file.path for file in client.list_artifacts(run.run_id, "images"))


def picture_steps(client: MlflowClient, run: RunRef) -> list[int]:
    full = [path for path in picture_files(client, run) if path.endswith(".png")]
    return sorted(int(path.split("+")[2]) for path in full)


def until(condition: Any, wait_s: float = 180) -> None:
    """Wait for it; a busy machine may take a minute to start a process."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_run_starts_with_params_files_data_set_and_versions(
    run: RunRef, client: MlflowClient, tmp_path: Path
) -> None:
    stored = client.get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.info.run_name == "tiny-1"
    assert client.get_experiment(run.experiment_id).name == "tiny"
    params = stored.data.params
    assert params["model.image_size"] == "16"
    assert params["model.betas"] == "[0.5, 0.999]"
    assert params["data.validation"] == "null"
    (data_set,) = stored.inputs.dataset_inputs
    assert json.loads(data_set.dataset.source) == {"uri": "s3://sets/train"}
    assert data_set.dataset.digest == "d" * 36
    assert stored.data.tags["data.digest"] == "d" * 64
    assert stored.data.tags["version.torch"].startswith("2.")
    assert len(stored.data.tags["mlflow.source.git.commit"]) == 40
    given = client.download_artifacts(run.run_id, "job/tiny.yaml", str(tmp_path))
    assert Path(given).read_text().startswith("# tiny\nname: tiny")
    client.download_artifacts(run.run_id, "job/resolved.yaml", str(tmp_path))


def test_no_password_of_an_address_reaches_mlflow_or_a_log(
    run: RunRef, client: MlflowClient, tmp_path: Path
) -> None:
    folder = Path(client.download_artifacts(run.run_id, "job", str(tmp_path)))
    texts = [path.read_text() for path in folder.iterdir()]
    texts += map(str, client.get_run(run.run_id).to_dictionary().values())
    assert len(texts) > 3
    assert not any("geheim" in text for text in texts)
    assert client.get_run(run.run_id).data.params["tracking.uri"] == (
        "http://***@mlflow.example:5000"
    )
    secret = RunRef("http://robot:geheim@host:5000", "1", "abc")
    assert "geheim" not in repr(secret) + run_url(secret)


def test_points_and_pictures_arrive_in_order_with_images_seen_as_step(
    run: RunRef, client: MlflowClient, picture: Any, tmp_path: Path
) -> None:
    before_ms = int(time.time() * 1000)
    tracker = Tracker(pickle.loads(pickle.dumps(run)), tmp_path)
    for step in range(1500):
        tracker.metrics({"generator/l1": 1 / (step + 1), "nan": float("nan")}, step * 4)
    for step in (0, 400, 800):
        tracker.image("samples/fixed inputs", picture, step)
    tracker.close()
    history = client.get_metric_history(run.run_id, "generator/l1")
    assert [metric.step for metric in history] == [step * 4 for step in range(1500)]
    assert history[3].value == 0.25
    assert all(before_ms <= metric.timestamp <= time.time() * 1000 for metric in history)
    assert np.isnan(client.get_metric_history(run.run_id, "nan")[7].value)
    assert picture_steps(client, run) == [0, 400, 800]


def test_pictures_are_stored_as_the_step_slider_of_mlflow_reads_them(
    run: RunRef, client: MlflowClient, picture: Any, tmp_path: Path
) -> None:
    tracker = Tracker(run, tmp_path / "spool")
    tracker.image("samples/fixed", picture, 400)
    tracker.close()
    thumbnail, full = picture_files(client, run)
    assert full.startswith("images/samples~fixed+step+400+timestamp+")
    assert thumbnail == full.removesuffix(".png") + "+compressed.webp"
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    from PIL import Image

    stored = client.download_artifacts(run.run_id, full, str(tmp_path))
    assert np.array_equal(np.array(Image.open(stored)), picture)
    assert not list(tmp_path.rglob("spool/**/*.png")), "sent pictures take no place"


def test_what_is_trained_again_after_a_restart_is_written_once(
    run: RunRef, client: MlflowClient, picture: Any, tmp_path: Path
) -> None:
    def train(spool: Path, first: int, last: int) -> None:
        tracker = Tracker(run, spool)
        for step in range(first, last, 2):
            tracker.metrics({"loss": float(step)}, step)
            if step % 10 == 0:
                tracker.metrics({"validation/l1": float(step)}, step)
                tracker.image("samples", picture, step)
        tracker.close()

    train(tmp_path / "first machine", 0, 40)
    train(tmp_path / "second machine", 20, 60)
    train(tmp_path / "second machine", 50, 80)
    assert steps(client, run, "loss") == list(range(0, 80, 2))
    assert steps(client, run, "validation/l1") == list(range(0, 80, 10))
    assert picture_steps(client, run) == list(range(0, 80, 10))


def test_a_server_that_dies_and_comes_back_loses_nothing_and_blocks_nobody(
    fragile_mlflow: MlflowServer, picture: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(fragile_mlflow.uri)
    client = MlflowClient(fragile_mlflow.uri)
    tracker = Tracker(run, tmp_path)
    tracker.metrics({"loss": 0.0}, 0)
    until(lambda: steps(client, run, "loss") == [0])
    fragile_mlflow.kill()
    took_s, began = [], time.monotonic()
    step = 0
    while time.monotonic() - began < 4:
        step += 1
        before = time.monotonic()
        tracker.metrics({"loss": float(step)}, step)
        if step % 100 == 0:
            tracker.image("samples", picture, step)
        took_s.append(time.monotonic() - before)
        time.sleep(0.005)
    took_s.sort()
    assert took_s[len(took_s) * 99 // 100] < BLOCKED_S
    assert took_s[-1] < 1, "a machine that has other things to do included"
    fragile_mlflow.start()
    tracker.close()
    assert steps(client, run, "loss") == list(range(step + 1))
    assert picture_steps(client, run) == list(range(100, step + 1, 100))
    finish_run(run, "FINISHED")
    assert client.get_run(run.run_id).info.status == "FINISHED"
    told = caplog.text
    assert "does not accept records" in told
    assert told.endswith("accepts records again\n")


def test_a_spool_that_a_dead_server_left_behind_is_replayed_exactly_once(
    run: RunRef,
    client: MlflowClient,
    picture: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unreachable = RunRef(f"http://127.0.0.1:{free_port()}", run.experiment_id, run.run_id)
    tracker = Tracker(unreachable, tmp_path)
    for step in range(20):
        tracker.metrics({"loss": float(step)}, step)
    tracker.image("samples", picture, 19)
    tracker.close(timeout_s=1)
    told = caplog.text
    assert "21 records did not reach MLflow" in told
    assert str(tmp_path / run.run_id) in told
    with pytest.raises(EnvironmentProblem, match="cannot be used"):
        replay(unreachable, tmp_path)

    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / run.run_id, copy / run.run_id)
    command = shlex.split(told.splitlines()[-1].replace(unreachable.tracking_uri, run.tracking_uri))
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert not (tmp_path / run.run_id).exists()
    assert replay(run, copy) == 21  # as if it had not been known that they were sent
    assert not copy.exists()
    assert steps(client, run, "loss") == list(range(20))
    assert picture_steps(client, run) == [19]


def test_what_was_sent_leaves_nothing_on_the_disk(run: RunRef, tmp_path: Path) -> None:
    tracker = Tracker(run, tmp_path / "spools" / "tiny")
    tracker.metrics({"loss": 1.0}, 2)
    tracker.close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "spools"]


def test_the_command_that_replays_shows_no_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(RunRef(f"http://me:geheim@127.0.0.1:{free_port()}", "1", "abc"), tmp_path)
    tracker.metrics({"loss": 1.0}, 2)
    tracker.close(timeout_s=0.1)
    told = caplog.text
    assert "geheim" not in told
    assert "with the user and password in place of ***" in told


def test_a_run_that_ends_when_the_server_is_gone_gives_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    finish_run(RunRef(f"http://127.0.0.1:{free_port()}", "1", "abc", retry_timeout_s=0), "FAILED")
    (told,) = [r.getMessage() for r in caplog.records if r.name.startswith("orchestrator")]
    assert told.startswith("tracking: run abc ended as FAILED, which could not be written: ")


def test_the_command_of_that_warning_writes_the_status(
    run: RunRef, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with monkeypatch.context() as patch:  # the server itself is well
        patch.setattr("orchestrator.tracking.mlflow_runs.connect", _gone)
        finish_run(replace(run, retry_timeout_s=0), "FAILED")
    assert client.get_run(run.run_id).info.status == "RUNNING"
    command = shlex.split(caplog.text.rstrip().splitlines()[-1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert client.get_run(run.run_id).info.status == "FAILED"


def _gone(uri: str) -> Any:
    raise EnvironmentProblem(f"MLflow at {uri} is gone")


def test_a_process_that_dies_while_it_writes_leaves_a_spool_that_can_be_sent(
    run: RunRef, client: MlflowClient, tmp_path: Path
) -> None:
    spool = tmp_path / run.run_id
    spool.mkdir()
    whole = json.dumps({"timestamp_ms": 1, "points": {"loss": 1.5}, "images_seen": 4})
    (spool / "records.jsonl").write_text(f"{whole}\n{whole[:20]}")
    tracker = Tracker(run, tmp_path)
    tracker.metrics({"loss": 2.5}, 8)
    tracker.close()
    assert steps(client, run, "loss") == [4, 8]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_status_is_what_happened(run: RunRef, client: MlflowClient, status: Any) -> None:
    finish_run(run, status)
    assert client.get_run(run.run_id).info.status == status


def test_a_server_that_is_not_there_is_known_soon_and_by_its_address() -> None:
    port = free_port()
    before = time.monotonic()
    with pytest.raises(EnvironmentProblem) as error:
        start(f"http://robot:geheim@127.0.0.1:{port}", retry_timeout_s=0)
    assert time.monotonic() - before < 60, "MLflow itself would try for minutes"
    told = str(error.value)
    assert told.startswith(f"MLflow at http://***@127.0.0.1:{port} cannot be used: ")
    assert "geheim" not in told
    assert told.endswith("correct tracking.uri; sqlite:///mlflow.db needs no server")


@pytest.mark.parametrize(
    "uri", ["mlruns", "sqlite://", "sqlite:///:memory:", "sqlite:///", "sqlite+pysqlite:///x"]
)
def test_an_address_that_several_processes_cannot_share_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"tracking\.uri"):
        resolve_paths(job_for(uri))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db?timeout=5", "sqlite:////here/mlflow.db?timeout=5"),
        ("sqlite:////there/mlflow.db", "sqlite:////there/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_a_database_starts_from_the_folder_of_all_places(uri: str, expected: str) -> None:
    assert to_absolute_tracking_uri(uri, Path("/here")) == expected
    assert to_absolute_tracking_uri(expected, Path("/elsewhere")) == expected


def test_an_artifact_place_that_cannot_be_written_is_named_and_the_run_failed(
    tmp_path: Path,
) -> None:
    (tmp_path / "mlartifacts").write_text("a file, where a folder is needed")
    uri = f"sqlite:///{ready(tmp_path / 'mlflow.db')}"
    with pytest.raises(EnvironmentProblem) as error:
        start(uri)
    assert f"MLflow's files at file://{tmp_path}/mlartifacts/" in str(error.value)
    assert "Make that place writable" in str(error.value)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FAILED"


def test_a_bucket_that_refuses_is_an_environment_problem() -> None:
    from botocore.exceptions import ClientError

    refused = ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "PutObject")
    told = pytest.raises(EnvironmentProblem, match=r"s3://\*\*\*@b/x cannot be .* Forbidden")
    with told, artifact_errors("s3://me:pw@b/x"):
        raise refused
    with pytest.raises(ZeroDivisionError), artifact_errors("s3://b/x"):
        _ = 1 / 0


def test_the_data_set_is_logged_by_its_masked_absolute_place(tmp_path: Path) -> None:
    uri = f"sqlite:///{ready(tmp_path / 'mlflow.db')}"
    for train, shown in (
        (f"{tmp_path}/cats", f"{tmp_path}/cats"),
        ("http://me:p/w@h/x", "http://***@h/x"),
    ):
        job = job_for(uri, train)
        text = "data: {train: '${env:SET}'}"
        run = start_run(job, rendered=text, text=text, file_name="x.yaml", digest="d", run_name="x")
        stored = MlflowClient(uri).get_run(run.run_id)
        assert stored.data.params == {"data.train": "${env:SET}"}
        assert stored.inputs.dataset_inputs[0].dataset.name == shown


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_sqlite_file_needs_no_server_and_no_current_folder(
    elsewhere: Path, picture: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    run = start("sqlite:///mlflow.db")
    assert run.tracking_uri == f"sqlite:///{elsewhere}/mlflow.db"
    assert run_url(run) == f"mlflow ui --backend-store-uri '{run.tracking_uri}'"
    other = elsewhere.parent / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    tracker = Tracker(run, elsewhere / "spool")
    tracker.metrics({"loss": 1.0}, 2)
    tracker.image("samples", picture, 2)
    tracker.close()
    finish_run(run, "FINISHED")
    client = MlflowClient(run.tracking_uri)
    assert steps(client, run, "loss") == [2]
    assert picture_steps(client, run) == [2]
    assert (elsewhere / "mlartifacts" / run.run_id / "artifacts" / "job" / "tiny.yaml").exists()
    assert not list(other.iterdir())
    assert capfd.readouterr() == ("", ""), "MLflow and alembic are quiet"


def test_importing_tracking_and_registry_does_not_import_mlflow() -> None:
    code = (
        "import sys, orchestrator.tracking, orchestrator.registry.registry as _; "
        "print('mlflow' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert finished.stdout == "False\n"
