"""An orphaned run is resumed, and ends where the uninterrupted run ends, bit for bit."""

import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run

from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.runs.driver import run_job
from orchestrator.runs.record import RunRecord, newest_unfinished_run
from orchestrator.runs.resume import compare_jobs
from orchestrator.storage.open import open_storage
from services.databases import create_mlflow_database
from support.drawings import draw_pairs
from support.fakes import without_clock
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job
from support.waiting import wait_until

pytestmark = pytest.mark.slow

SETTINGS = ["train.images=96", "train.checkpoint_every=8", "train.log_every=4"]
SETTINGS += ["train.ema_decay=0.9", "train.validate_every=24"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("resume"))


def command(job: Path, *options: str) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets, *options]


def points(folder: Path, run: Run) -> dict[str, list[tuple[int, float]]]:
    """The points of every metric in the order they were logged, except those of the clock."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    names = without_clock(run.data.metrics)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


def signal_driver(number: signal.Signals, job: Path, num_checkpoints: int, *options: str) -> None:
    """Start a run of ``job``, and send ``number`` to its driver after some checkpoints."""
    process = subprocess.Popen(command(job, *options), stderr=subprocess.DEVNULL)

    def has_saved() -> bool:
        assert process.poll() is None, "it ended before the signal"
        saved = list(job.parent.glob("runs/*/checkpoints/*/manifest.json"))
        return len(saved) >= num_checkpoints

    wait_until(has_saved, 300, f"{num_checkpoints} checkpoints", poll_s=0.02)
    process.send_signal(number)
    process.wait(180)


def test_a_run_whose_driver_was_killed_ends_where_the_uninterrupted_run_ends(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = write_job(tmp_path / "whole", data), write_job(tmp_path / "killed", data)
    run_job(load_job(whole, SETTINGS))
    for num_checkpoints in (2, 3):
        signal_driver(signal.SIGKILL, killed, num_checkpoints, "--resume")
    run_job(load_job(killed, SETTINGS), resume=True)
    assert "starting a new one" not in capsys.readouterr().err
    one, two = only_run(whole.parent), only_run(killed.parent)
    assert two.info.status == "FINISHED"
    stores = [
        checkpoints_of(str(folder / "runs"), run)
        for folder, run in ((whole.parent, one), (killed.parent, two))
    ]
    states = [store.load(store.names()[-1]) for store in stores]
    assert states[0].images_seen == states[1].images_seen == 96
    assert states[0].settings == states[1].settings
    for kind in ("networks", "snapshot", "optimizers"):
        tensors = [getattr(state, kind) for state in states]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert points(killed.parent, two) == points(whole.parent, one), "each point once"
    client = mlflow.MlflowClient(f"sqlite:///{killed.parent}/mlflow.db")
    assert client.get_model_version_by_alias("small", "candidate").run_id == two.info.run_id


def test_a_driver_that_was_suspended_while_another_one_finished_its_run_changes_nothing(
    data: str, tmp_path: Path
) -> None:
    whole, job = write_job(tmp_path / "whole", data), write_job(tmp_path / "suspended", data)
    run_job(load_job(whole, SETTINGS))
    suspended = subprocess.Popen(command(job, "--resume"), stderr=subprocess.PIPE, text=True)
    try:
        saved = job.parent / "runs"
        wait_until(lambda: len(list(saved.glob("*/checkpoints/*/manifest.json"))) > 1, 300, "2")
        suspended.send_signal(signal.SIGSTOP)
        run_job(load_job(job, SETTINGS), resume=True)
        left = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    finally:
        suspended.send_signal(signal.SIGCONT)
        _, printed = suspended.communicate(timeout=180)
    assert suspended.returncode == 75, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "another driver has taken over" in errors[0]
    assert "Traceback" not in printed
    run = only_run(job.parent)
    assert run.info.status == "FINISHED"
    assert points(job.parent, run) == points(whole.parent, only_run(whole.parent))
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    assert len(client.search_model_versions("name='small'")) == 1
    now = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    changed = {str(path.relative_to(saved)) for path in now if now[path] != left.get(path)}
    changed -= {f"{run.info.run_name}/drivers/000001.json"}  # its own lease
    # What its process has used, and a write to its own folder that was under way.
    assert {Path(path).parent.name for path in changed} <= {"usage", "000001"}


def test_a_finished_run_is_not_resumed(data: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    run_job(load_job(job, settings), resume=True)
    run_job(load_job(job, settings), resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert newest_unfinished_run(open_storage(str(job.parent / "runs")), "small") is None


def interrupted(job: Path, settings: list[str]) -> RunRecord:
    """A run that has not finished."""
    run_job(load_job(job, settings))
    storage = open_storage(str(job.parent / "runs"))
    (finished,) = [key for key in storage.list() if key.endswith("/finished.json")]
    storage.delete(finished)
    found = newest_unfinished_run(storage, "small")
    assert found is not None
    return found


def test_a_job_that_computes_something_else_is_refused_with_its_differences(
    data: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    found = interrupted(job, settings)
    changes = ["train.batch_size=8", "model.filters=8", "train.log_every=2", "cluster.workers=1"]
    with pytest.raises(UsageError) as caught:
        run_job(load_job(job, [*settings, *changes]), resume=True)
    assert str(caught.value) == (
        f"run {found.run} cannot be resumed: the job differs from the one that it was started "
        "with:\n"
        "  model.filters: 4 -> 8\n"
        "  train.batch_size: 4 -> 8\n"
        "undo the changes, or start a new run: from this one's newest checkpoint with "
        f"--init-from {job.parent}/runs/{found.run}, or from the beginning with --no-resume"
    )
    assert caught.value.exit_code == 2
    run_job(load_job(job, [*settings, "train.log_every=2"]), resume=True)
    assert only_run(job.parent).info.status == "FINISHED"


def test_a_different_training_set_is_refused(data: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    interrupted(job, settings)
    pack_folder(draw_pairs(tmp_path / "other", count=12, size=16), str(tmp_path / "data"), size=16)
    with pytest.raises(UsageError, match=r"the training set: digest [0-9a-f]{12} -> [0-9a-f]{12}"):
        run_job(load_job(job, [*settings, f"data.train={tmp_path}/data/train"]), resume=True)


def test_an_mlflow_that_does_not_know_the_run_is_reported(data: str, tmp_path: Path) -> None:
    job = write_job(tmp_path / "x", data)
    settings = ["train.images=8", "register=null"]
    found = interrupted(job, settings)
    other = f"tracking.uri=sqlite:///{create_mlflow_database(tmp_path / 'other.db')}"
    with pytest.raises(EnvironmentProblem, match=f"has no run {found.mlflow_run_id} to resume"):
        run_job(load_job(job, [*settings, other]), resume=True)


def num_runs(job: Path) -> int:
    return len(list(job.parent.glob("runs/*/run.json")))


def test_only_the_same_job_resumes_an_orphaned_run_by_default(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path / "x", data)
    signal_driver(signal.SIGKILL, job, 1, "--no-resume")
    run_job(load_job(job, [*SETTINGS, "model.learning_rate=0.1"]))
    log = capsys.readouterr().err
    assert "which has not finished, differs (model.learning_rate: " in log
    assert f"--init-from {job.parent}/runs/small-" in log
    assert num_runs(job) == 2
    run_job(load_job(job, SETTINGS), resume=False)
    assert num_runs(job) == 3
    run_job(load_job(job, SETTINGS))
    assert "whose driver died; --no-resume starts a new one" in capsys.readouterr().err
    assert num_runs(job) == 3
    assert newest_unfinished_run(open_storage(str(job.parent / "runs")), "small") is None


def test_a_stopped_run_is_not_resumed_by_default_and_the_log_names_the_option(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path / "x", data)
    signal_driver(signal.SIGTERM, job, 1, "--no-resume")
    run_job(load_job(job, SETTINGS))
    assert (
        "failed or was stopped before it finished; to resume it, use --resume"
        in capsys.readouterr().err
    )
    assert num_runs(job) == 2


def test_a_resumed_job_may_change_where_it_runs_but_not_what_it_computes() -> None:
    before = "train: {seed: 0, log_every: 4}\ncluster: {workers: 1}\n"
    before += "data: {threads: 2, shuffle_streams: 96}\n"
    assert compare_jobs(before, before.replace("workers: 1", "workers: 8")) == []
    assert compare_jobs(before, before.replace("log_every: 4", "log_every: 9")) == []
    assert compare_jobs(before, before.replace("threads: 2", "threads: 4")) == []
    assert compare_jobs(before, f"{before}guard: {{max_rollbacks: 9, collapse: stop}}\n") == []
    assert compare_jobs(before, before.replace("shuffle_streams: 96", "shuffle_streams: 48")) == [
        "data.shuffle_streams: 96 -> 48"
    ]
    assert compare_jobs(before, before.replace("seed: 0, ", "")) == ["train.seed: 0 -> not set"]
