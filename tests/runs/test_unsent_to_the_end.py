"""Runs whose records MLflow lacks, from end to end: MLflow is down and machines are lost."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.config.load import load_job
from orchestrator.errors import UsageError
from orchestrator.runs.driver import run_job
from orchestrator.runs.replay import replay_run
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from services.mlflow_server import MlflowServer
from support.fakes import without_clock
from support.mlflow_runs import runs_of
from support.small_runs import pack_pairs, write_job
from support.waiting import wait_until


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "runs"))


SETTINGS = ["train.images=160", "train.checkpoint_every=8", "train.log_every=4"]
SETTINGS += ["train.sample_every=16", "train.validate_every=16", "register=null"]


def logged(client: MlflowClient, experiment: str) -> tuple[dict[str, list[int]], list[str]]:
    """The steps of each metric and of each picture of the one run, without those of the clock."""
    (run,) = runs_of(client, experiment)
    names = without_clock(run.data.metrics)
    steps = {
        name: [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }
    files = (file.path for file in client.list_artifacts(run.info.run_id, "images"))
    return steps, sorted("+".join(f.split("+")[:3]) + f[-4:] for f in files)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("unsent"))


def command(job: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *options]


def settings_for(server: MlflowServer, experiment: str, *more: str) -> list[str]:
    return [*SETTINGS, f"tracking.uri={server.uri}", f"tracking.experiment={experiment}", *more]


def as_options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def new_machine(folder: Path) -> dict[str, str]:
    """The environment of a machine with an empty temporary folder."""
    folder.mkdir()
    return os.environ | {"TMPDIR": str(folder)}


@pytest.mark.server
@pytest.mark.slow
def test_a_machine_that_is_lost_while_mlflow_is_down_takes_no_record_with_it(
    fragile_mlflow: MlflowServer, data: str, tmp_path: Path
) -> None:
    whole, lost = (f"{name}-{uuid.uuid4().hex}" for name in ("whole", "lost"))
    job, whole_job = write_job(tmp_path / "lost", data), write_job(tmp_path / "whole", data)
    run_job(load_job(whole_job, settings_for(fragile_mlflow, whole)))
    client = MlflowClient(fragile_mlflow.uri)
    options = as_options(settings_for(fragile_mlflow, lost))
    for number in range(2):
        environment = new_machine(tmp_path / f"machine {number}")
        driver = subprocess.Popen(
            command(job, "--resume", *options), env=environment, stderr=subprocess.DEVNULL
        )
        wait_for_checkpoint(job, 3 + 5 * number)
        fragile_mlflow.kill()
        wait_for_checkpoint(job, 6 + 5 * number)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert list(job.parent.glob("runs/*/unsent/*/records.jsonl"))
        shutil.rmtree(tmp_path / f"machine {number}")
        fragile_mlflow.start()
    environment = new_machine(tmp_path / "last machine")
    subprocess.run(
        command(job, "--resume", *options), env=environment, check=True, capture_output=True
    )
    expected, found = logged(client, whole), logged(client, lost)
    assert found == expected
    assert len(expected[0]["generator/loss"]) == 40
    assert len(expected[1]) >= 20
    assert not list(job.parent.glob("runs/*/unsent/*/*")), "all are sent"


def wait_for_checkpoint(job: Path, number: int) -> None:
    wait_until(lambda: num_saved(job) >= number, 180, f"checkpoint {number}", poll_s=0.01)


def num_saved(job: Path) -> int:
    """Number of the newest checkpoint, from 1 on: one comes after 8 images each."""
    names = [path.parent.name for path in job.parent.glob("runs/*/checkpoints/*/manifest.json")]
    return int(max(names, default="0").partition("-")[0]) // 8


@pytest.mark.server
@pytest.mark.slow
def test_the_command_that_a_run_prints_sends_what_is_unsent_from_any_machine(
    fragile_mlflow: MlflowServer, data: str, tmp_path: Path
) -> None:
    whole, job = (write_job(tmp_path / name, data) for name in ("whole", "down"))
    names = [f"{name}-{uuid.uuid4().hex}" for name in ("whole", "down")]
    run_job(load_job(whole, settings_for(fragile_mlflow, names[0])))
    settings = settings_for(fragile_mlflow, names[1], "tracking.retry_timeout_s=2")
    driver = subprocess.Popen(
        command(job, *as_options(settings)),
        env=new_machine(tmp_path / "machine"),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_checkpoint(job, 3)
    fragile_mlflow.kill()
    _, printed = driver.communicate(timeout=300)
    assert driver.returncode == 0, printed
    shutil.rmtree(tmp_path / "machine")
    (line,) = [line for line in printed.splitlines() if "orchestrator tracking replay" in line]
    program, *arguments = shlex.split(line)
    assert program == "orchestrator"

    def replay(*given: str, machine: str = "other") -> subprocess.CompletedProcess[str]:
        (tmp_path / machine).mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *given],
            env=os.environ | {"TMPDIR": str(tmp_path / machine)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    down = replay(*arguments)
    assert (down.returncode, down.stderr.count("\n")) == (3, 1), down.stderr
    assert "does not answer" in down.stderr
    fragile_mlflow.start()
    sent = replay(*arguments, machine="third")
    assert sent.returncode == 0, sent.stderr
    assert "sent to MLflow at http" in sent.stdout
    assert "of them from the storage" in sent.stdout
    client = MlflowClient(fragile_mlflow.uri)
    assert logged(client, names[1]) == logged(client, names[0])
    for machine in ("third", "other"):
        again = replay(*arguments, machine=machine)
        assert again.returncode == 0, again.stderr
    assert "lacks nothing" in again.stdout or "sent to MLflow" in again.stdout
    assert logged(client, names[1]) == logged(client, names[0])
    assert not list(job.parent.glob("runs/*/unsent/*/*"))
    mistyped = replay("tracking", "replay", f"{arguments[2]}x", *arguments[3:])
    assert mistyped.returncode == 2
    assert f"did you mean '{arguments[2]}'?" in mistyped.stderr


@pytest.mark.parametrize("name", ["", "../x", "a//b", "/etc", "x" * 300])
def test_a_name_that_is_none_is_a_usage_error(name: str, storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        replay_run(name, storage, "http://127.0.0.1:1")


def test_a_database_that_is_not_there_is_not_created(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no MLflow database at"):
        replay_run("x", storage, f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
