"""The registered version is the best checkpoint by a metric, whatever happened to the run."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import DataError, TrainingFailed, UsageError
from orchestrator.registry.registry import pull
from orchestrator.runs.driver import run_job
from orchestrator.runs.resume import compare_jobs
from support.drawings import draw_pairs
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job
from support.waiting import wait_until

pytestmark = pytest.mark.slow

SETTINGS = ["train.images=64", "train.checkpoint_every=8", "train.log_every=4"]
SETTINGS += ["train.validate_every=8", "train.sample_every=64"]
BEST = "register.best={metric: validation/psnr, mode: min}"
"""The worst picture, so that it is an old checkpoint, beyond those that are always kept."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("best"))


def history(folder: Path, metric: str) -> dict[int, float]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    points = client.get_metric_history(only_run(folder).info.run_id, metric)
    return {point.step: point.value for point in points}


def kill_driver(job: Path, num_checkpoints: int) -> None:
    sets = [part for setting in (*SETTINGS, BEST) for part in ("--set", setting)]
    command = [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets, "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    found = job.parent / "runs"
    seen: set[Path] = set()

    def has_saved() -> bool:
        assert process.poll() is None, "it ended before it was killed"
        seen.update(found.glob("*/checkpoints/*/manifest.json"))
        return len(seen) >= num_checkpoints

    wait_until(has_saved, 300, f"{num_checkpoints} checkpoints", poll_s=0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def test_a_killed_run_registers_the_best_checkpoint_of_the_uninterrupted_one(
    data: str, tmp_path: Path
) -> None:
    whole, killed = write_job(tmp_path / "whole", data), write_job(tmp_path / "killed", data)
    run_job(load_job(whole, [*SETTINGS, BEST]))
    kill_driver(killed, 4)
    run_job(load_job(killed, [*SETTINGS, BEST]), resume=True)

    values = history(whole.parent, "validation/psnr")
    assert sorted(values) == list(range(8, 65, 8)), "each is the step of a checkpoint"
    best = next(n for n, value in sorted(values.items()) if value == min(values.values()))
    weights = []
    for job in (whole, killed):
        uri = f"sqlite:///{job.parent}/mlflow.db"
        kept = checkpoints_of(str(job.parent / "runs"), only_run(job.parent)).names()
        assert {int(name.split("-")[0]) for name in kept} == {best, 48, 56, 64}
        version = mlflow.MlflowClient(uri).get_model_version_by_alias("small", "candidate")
        assert version.tags["note.images_seen"] == str(best)
        assert float(version.tags["note.validation/psnr"]) == values[best]
        folder = pull("small", job.parent / "pulled", uri)
        weights.append(load_file(folder / "weights.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_best_checkpoint_that_is_damaged_is_not_replaced_by_another_one(
    data: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "x", data)
    settings = [*SETTINGS, BEST, "train.images=16"]
    run_job(load_job(job, [*settings, "register.name=first"]))
    checkpoints = checkpoints_of(str(job.parent / "runs"), only_run(job.parent))
    (name,) = [n for n in checkpoints.names() if n.startswith(f"{8:012d}-")]
    file = job.parent / "runs" / checkpoints.prefix / name / "snapshot.safetensors"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    next(job.parent.glob("runs/*/finished.json")).unlink()  # as if it had not been registered
    with pytest.raises(DataError, match=r"of 8 images, cannot be registered: .* has changed; "):
        run_job(load_job(job, settings), resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    assert client.search_model_versions("name='small'") == []
    file.write_bytes(intact)
    run_job(load_job(job, settings), resume=True)
    (version,) = client.search_model_versions("name='small'")
    assert version.tags["note.images_seen"] == "8"


def test_without_a_value_nothing_is_registered(tmp_path: Path) -> None:
    """A distance between sets needs two validation images; here is one."""
    pairs = draw_pairs(tmp_path / "pairs", count=20, size=16)
    pack_folder(pairs, str(tmp_path / "data"), size=16, validation_share=0.05)
    job = write_job(tmp_path / "x", str(tmp_path / "data"))
    best = "register.best={metric: validation/random_feature_mmd, mode: min}"
    settings = [*SETTINGS, "train.images=16", best]
    expected = "nothing is registered: no checkpoint of run .* has a finite validation/random_fe"
    with pytest.raises(TrainingFailed, match=expected) as caught:
        run_job(load_job(job, settings))
    assert "\n" not in str(caught.value)
    assert only_run(job.parent).info.status == "FAILED"
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    assert client.search_registered_models() == []
    run_job(load_job(job, [*settings, "register.best=null"]), resume=True)
    assert len(client.search_model_versions("name='small'")) == 1


def test_a_resumed_run_may_not_get_another_metric_but_none() -> None:
    by_l1 = "register:\n  name: x\n  best:\n    metric: validation/l1\n    mode: min\n"
    newest = "register:\n  name: x\n  best: null\n"
    assert compare_jobs(newest, by_l1) == [
        "register.best.metric: not set -> validation/l1",
        "register.best.mode: not set -> min",
    ]
    assert compare_jobs(by_l1, by_l1.replace("min", "max")) == ["register.best.mode: min -> max"]
    assert compare_jobs(by_l1, newest) == []
    assert compare_jobs(by_l1, "register: null\n") == []


MISTAKES = {
    "a misspelt metric": (
        "validation/l",
        "register.best.metric: the model pix2pix has no metric validation/l; did you mean "
        "validation/l1? it has: ",
    ),
    "a metric of the run": (
        "images_per_s",
        "register.best.metric: images_per_s tells how a run went, not how good its model is; use ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_metric_is_checked_before_the_training(data: str, tmp_path: Path, mistake: str) -> None:
    metric, message = MISTAKES[mistake]
    job = write_job(tmp_path / "x", data)
    with pytest.raises(UsageError, match=re.escape(message)):
        load_job(job, [f"register.best={{metric: {metric}, mode: min}}"])


def test_a_metric_of_the_validation_needs_its_set_and_a_sweep_has_its_own_choice(
    data: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "x", data)
    with pytest.raises(UsageError, match="validation/psnr needs a validation set"):
        load_job(job, [BEST, "data.validation=null"])
    sweep = "sweep={metric: validation/l1, trials: 1, space: {model.dropout: {choice: [0.1]}}}"
    with pytest.raises(UsageError, match=r"register\.best: a sweep registers the newest"):
        load_job(job, [BEST, sweep])
