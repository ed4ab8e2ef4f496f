"""Runs, metrics and images in a real MLflow: a server that dies, and a SQLite file."""

import json
import pickle
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from numpy.typing import NDArray

from orchestrator.config.paths import resolve_paths, to_absolute_tracking_uri
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.tracking import (
    RunRef,
    Tracker,
    finish_run,
    replay,
    run_url,
    start_run,
    uri_option,
)
from orchestrator.tracking.client import artifact_errors
from services.databases import create_mlflow_database
from services.mlflow_server import MlflowServer
from services.ports import free_port
from support.mlflow_runs import logged_steps, make_job, only_dataset, runs_of, start_tiny_run
from support.waiting import wait_until

pytestmark = [pytest.mark.server, pytest.mark.slow]

Pixels = NDArray[np.uint8]


@pytest.fixture
def run(running_mlflow: MlflowServer) -> RunRef:
    return start_tiny_run(running_mlflow.uri)


@pytest.fixture
def client(running_mlflow: MlflowServer) -> MlflowClient:
    return MlflowClient(running_mlflow.uri)


@pytest.fixture
def pixels() -> Pixels:
    return np.arange(24 * 24 * 3, dtype=np.uint32).reshape(24, 24, 3).astype(np.uint8)


def image_files(client: MlflowClient, run: RunRef) -> list[str]:
    return sorted(file.path for file in client.list_artifacts(run.run_id, "images"))


def image_steps(client: MlflowClient, run: RunRef) -> list[int]:
    full = [path for path in image_files(client, run) if path.endswith(".png")]
    return sorted(int(path.split("+")[2]) for path in full)


def test_a_new_run_has_params_files_dataset_and_versions(
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
    dataset = only_dataset(stored)
    assert json.loads(dataset.source) == {"uri": "s3://sets/train"}
    assert dataset.digest == "d" * 36
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


def test_metrics_and_images_arrive_in_order_with_images_seen_as_step(
    run: RunRef, client: MlflowClient, pixels: Pixels, tmp_path: Path
) -> None:
    before_ms = int(time.time() * 1000)
    tracker = Tracker(pickle.loads(pickle.dumps(run)), tmp_path)
    for step in range(1500):
        tracker.log_metrics({"generator/l1": 1 / (step + 1), "nan": float("nan")}, step * 4)
    for step in (0, 400, 800):
        tracker.log_image("samples/fixed inputs", pixels, step)
    tracker.close()
    history = client.get_metric_history(run.run_id, "generator/l1")
    assert [metric.step for metric in history] == [step * 4 for step in range(1500)]
    assert history[3].value == 0.25
    assert all(before_ms <= metric.timestamp <= time.time() * 1000 for metric in history)
    assert np.isnan(client.get_metric_history(run.run_id, "nan")[7].value)
    assert image_steps(client, run) == [0, 400, 800]


def test_images_are_stored_as_the_step_slider_of_mlflow_reads_them(
    run: RunRef, client: MlflowClient, pixels: Pixels, tmp_path: Path
) -> None:
    tracker = Tracker(run, tmp_path / "spool")
    tracker.log_image("samples/fixed", pixels, 400)
    tracker.close()
    thumbnail, full = image_files(client, run)
    assert full.startswith("images/samples~fixed+step+400+timestamp+")
    assert thumbnail == full.removesuffix(".png") + "+compressed.webp"
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    from PIL import Image

    stored = client.download_artifacts(run.run_id, full, str(tmp_path))
    assert np.array_equal(np.array(Image.open(stored)), pixels)
    assert not list(tmp_path.rglob("spool/**/*.png")), "sent images are deleted"


def test_steps_that_are_trained_again_after_a_restart_are_logged_once(
    run: RunRef, client: MlflowClient, pixels: Pixels, tmp_path: Path
) -> None:
    def train(spool: Path, first: int, last: int) -> None:
        tracker = Tracker(run, spool)
        for step in range(first, last, 2):
            tracker.log_metrics({"loss": float(step)}, step)
            if step % 10 == 0:
                tracker.log_metrics({"validation/l1": float(step)}, step)
                tracker.log_image("samples", pixels, step)
        tracker.close()

    train(tmp_path / "first machine", 0, 40)
    train(tmp_path / "second machine", 20, 60)
    train(tmp_path / "second machine", 50, 80)
    assert logged_steps(client, run, "loss") == list(range(0, 80, 2))
    assert logged_steps(client, run, "validation/l1") == list(range(0, 80, 10))
    assert image_steps(client, run) == list(range(0, 80, 10))


def test_nothing_is_lost_and_no_call_blocks_while_the_server_is_down(
    fragile_mlflow: MlflowServer, pixels: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start_tiny_run(fragile_mlflow.uri)
    client = MlflowClient(fragile_mlflow.uri)
    tracker = Tracker(run, tmp_path)
    tracker.log_metrics({"loss": 0.0}, 0)
    wait_until(lambda: logged_steps(client, run, "loss") == [0], 180, "the first point")
    fragile_mlflow.kill()
    took_s, start = [], time.monotonic()
    step = 0
    while time.monotonic() - start < 4:
        step += 1
        before = time.monotonic()
        tracker.log_metrics({"loss": float(step)}, step)
        if step % 100 == 0:
            tracker.log_image("samples", pixels, step)
        took_s.append(time.monotonic() - before)
        time.sleep(0.005)
    took_s.sort()
    assert took_s[len(took_s) * 99 // 100] < 1, "a call to the server would take longer"
    fragile_mlflow.start()
    tracker.close()
    assert logged_steps(client, run, "loss") == list(range(step + 1))
    assert image_steps(client, run) == list(range(100, step + 1, 100))
    finish_run(run, "FINISHED")
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert "does not accept records" in caplog.text
    assert caplog.text.endswith("accepts records again\n")


def test_a_spool_left_by_an_outage_is_replayed_exactly_once(
    run: RunRef,
    client: MlflowClient,
    pixels: Pixels,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unreachable = RunRef(f"http://127.0.0.1:{free_port()}", run.experiment_id, run.run_id)
    tracker = Tracker(unreachable, tmp_path)
    for step in range(20):
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.log_image("samples", pixels, 19)
    tracker.close(timeout_s=1)
    log = caplog.text
    assert "21 records did not reach MLflow" in log
    assert str(tmp_path / run.run_id) in log
    with pytest.raises(EnvironmentProblem, match="does not answer"):
        replay(unreachable, tmp_path)

    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / run.run_id, copy / run.run_id)
    command = f"orchestrator tracking replay {tmp_path.name} --tracking-uri "
    assert log.splitlines()[-1] == f"  {command}{unreachable.tracking_uri}"
    assert replay(run, tmp_path) == 21
    assert not (tmp_path / run.run_id).exists()
    assert replay(run, copy) == 21  # as if it were unknown that they were sent
    assert not copy.exists()
    assert logged_steps(client, run, "loss") == list(range(20))
    assert image_steps(client, run) == [19]


def test_sent_records_are_deleted_from_the_disk(run: RunRef, tmp_path: Path) -> None:
    tracker = Tracker(run, tmp_path / "spools" / "tiny")
    tracker.log_metrics({"loss": 1.0}, 2)
    tracker.close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "spools"]


def test_the_replay_command_shows_no_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(RunRef(f"http://me:geheim@127.0.0.1:{free_port()}", "1", "abc"), tmp_path)
    tracker.log_metrics({"loss": 1.0}, 2)
    tracker.close(timeout_s=0.1)
    assert "geheim" not in caplog.text
    assert "with the user and password in place of ***" in caplog.text


def test_a_run_that_ends_while_the_server_is_down_gives_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    finish_run(RunRef(f"http://127.0.0.1:{free_port()}", "1", "abc", retry_timeout_s=0), "FAILED")
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("orchestrator")]
    assert message.startswith("tracking: run abc ended as FAILED, which could not be written: ")


def test_the_command_in_that_warning_writes_the_status(
    run: RunRef, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.tracking.mlflow_runs.connect", _gone)
        finish_run(replace(run, retry_timeout_s=0), "FAILED")
    assert client.get_run(run.run_id).info.status == "RUNNING"
    command = shlex.split(caplog.text.rstrip().splitlines()[-1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert client.get_run(run.run_id).info.status == "FAILED"


def _gone(uri: str) -> Any:
    raise EnvironmentProblem(f"MLflow at {uri} is gone")


def test_the_spool_of_a_process_that_died_while_it_wrote_can_be_sent(
    run: RunRef, client: MlflowClient, tmp_path: Path
) -> None:
    spool = tmp_path / run.run_id
    spool.mkdir()
    whole = json.dumps({"format": 2, "timestamp_ms": 1, "metrics": {"loss": 1.5}, "images_seen": 4})
    (spool / "records.jsonl").write_text(f"{whole}\n{whole[:20]}")
    tracker = Tracker(run, tmp_path)
    tracker.log_metrics({"loss": 2.5}, 8)
    tracker.close()
    assert logged_steps(client, run, "loss") == [4, 8]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_status_is_how_the_run_ended(run: RunRef, client: MlflowClient, status: Any) -> None:
    finish_run(run, status)
    assert client.get_run(run.run_id).info.status == status


def test_a_missing_server_is_reported_soon_and_with_its_address() -> None:
    port = free_port()
    before = time.monotonic()
    with pytest.raises(EnvironmentProblem) as error:
        start_tiny_run(f"http://robot:geheim@127.0.0.1:{port}", retry_timeout_s=0)
    assert time.monotonic() - before < 60, "MLflow itself would try for minutes"
    message = str(error.value)
    assert message.startswith(f"MLflow at http://***@127.0.0.1:{port} does not answer: ")
    assert "geheim" not in message
    assert message.endswith("correct tracking.uri; sqlite:///mlflow.db needs no server")


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///",
        "sqlite+pysqlite://",
        "file:///x",
        "s3://b/x",
        "http:///x",
    ],
)
def test_an_address_that_several_processes_cannot_share_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"tracking\.uri"):
        resolve_paths(make_job(uri))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db?timeout=5", "sqlite:////here/mlflow.db?timeout=5"),
        ("sqlite:////there/mlflow.db", "sqlite:////there/mlflow.db"),
        ("sqlite:///50%/a%20b/c#d.db", "sqlite:////here/50%/a b/c#d.db"),
        (
            "sqlite:///a%3Fb%2520/m.db?timeout=5",
            "sqlite+pysqlite:////here/a%3Fb%2520/m.db?timeout=5",
        ),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_a_relative_database_path_starts_from_the_base_folder(uri: str, expected: str) -> None:
    assert to_absolute_tracking_uri(uri, Path("/here")) == expected
    assert to_absolute_tracking_uri(expected, Path("/elsewhere")) == expected


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("sqlite:////a/m.db", ""),
        ("http://host:5000", " --tracking-uri sqlite:////a/m.db"),
        # The variable of another program, where the job has an address of its own.
        ("file:///old/mlruns", " --tracking-uri sqlite:////a/m.db"),
        ("sqlite:///~no-such-user/m.db", " --tracking-uri sqlite:////a/m.db"),
        ("databricks", " --tracking-uri sqlite:////a/m.db"),
    ],
)
def test_printed_commands_name_the_database_unless_the_variable_does(
    variable: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert uri_option("sqlite:////a/m.db") == option


def test_an_artifact_location_that_cannot_be_written_is_named_and_the_run_failed(
    tmp_path: Path,
) -> None:
    (tmp_path / "mlartifacts").write_text("a file, where a folder is needed")
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    with pytest.raises(EnvironmentProblem) as error:
        start_tiny_run(uri)
    assert f"MLflow's files at file://{tmp_path}/mlartifacts/" in str(error.value)
    assert "make that location writable" in str(error.value)
    (run,) = runs_of(MlflowClient(uri), "tiny")
    assert run.info.status == "FAILED"


def test_a_bucket_that_refuses_access_is_an_environment_problem() -> None:
    from botocore.exceptions import ClientError

    refused = ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "PutObject")
    raises = pytest.raises(EnvironmentProblem, match=r"s3://\*\*\*@b/x cannot be .* Forbidden")
    with raises, artifact_errors("s3://me:pw@b/x"):
        raise refused
    with pytest.raises(ZeroDivisionError), artifact_errors("s3://b/x"):
        _ = 1 / 0


def test_the_dataset_is_logged_with_its_masked_absolute_path(tmp_path: Path) -> None:
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    for train, shown in (
        (f"{tmp_path}/cats", f"{tmp_path}/cats"),
        ("http://me:p/w@h/x", "http://***@h/x"),
    ):
        job = make_job(uri, train)
        text = "data: {train: '${env:SET}'}"
        run = start_run(job, rendered=text, text=text, file_name="x.yaml", digest="d", run_name="x")
        stored = MlflowClient(uri).get_run(run.run_id)
        assert stored.data.params == {"data.train": "${env:SET}"}
        assert only_dataset(stored).name == shown


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_sqlite_file_needs_no_server_and_does_not_depend_on_the_current_folder(
    elsewhere: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    run = start_tiny_run("sqlite:///mlflow.db")
    assert run.tracking_uri == f"sqlite:///{elsewhere}/mlflow.db"
    assert run_url(run) == f"mlflow ui --backend-store-uri '{run.tracking_uri}'"
    other = elsewhere.parent / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    tracker = Tracker(run, elsewhere / "spool")
    tracker.log_metrics({"loss": 1.0}, 2)
    tracker.log_image("samples", pixels, 2)
    tracker.close()
    finish_run(run, "FINISHED")
    client = MlflowClient(run.tracking_uri)
    assert logged_steps(client, run, "loss") == [2]
    assert image_steps(client, run) == [2]
    assert (elsewhere / "mlartifacts" / run.run_id / "artifacts" / "job" / "tiny.yaml").exists()
    assert not list(other.iterdir())
    assert capfd.readouterr() == ("", ""), "MLflow and alembic print nothing"


def test_importing_tracking_and_registry_does_not_import_mlflow() -> None:
    code = (
        "import sys, orchestrator.tracking, orchestrator.registry.registry as _; "
        "print('mlflow' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert finished.stdout == "False\n"
