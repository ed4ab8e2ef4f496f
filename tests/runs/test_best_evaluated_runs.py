"""Real runs that register the best of their evaluated checkpoints."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion
from safetensors.torch import load_file

from orchestrator.config.load import load_job
from orchestrator.registry.registry import pull
from orchestrator.runs import evaluations
from orchestrator.runs.checkpoints import images_of
from orchestrator.runs.driver import run_job
from support.evaluators import killing_evaluators
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job
from support.waiting import wait_until

pytestmark = pytest.mark.slow

SETTINGS = ["train.images=160", "train.checkpoint_every=8", "train.log_every=8"]
SETTINGS += ["train.validate_every=8", "train.sample_every=160", "evaluate={metrics: [pairs]}"]
BEST = "register.best={metric: evaluation/psnr, mode: min}"
"""The worst picture, so that it is an old checkpoint, beyond those that are always kept."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("best"))


def candidate(folder: Path) -> ModelVersion:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.get_model_version_by_alias("small", "candidate")


def history(folder: Path) -> dict[int, float]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    points = client.get_metric_history(only_run(folder).info.run_id, "validation/l1")
    return {point.step: point.value for point in points}


def results(folder: Path) -> dict[str, float]:
    """The PSNR of each evaluated checkpoint, from the files in the storage alone."""
    found = {}
    for path in folder.glob("runs/*/evaluations/*.json"):
        content = json.loads(path.read_text())
        values = {each["metric"]: each["value"] for each in content["measurements"]}
        found[content["checkpoint"]] = values["psnr"]
    return found


def kill_driver(job: Path, settings: list[str]) -> None:
    """Train until the checkpoint of the first result would be deleted, and kill everything."""
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets, "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    saved: set[str] = set()

    def is_beyond() -> bool:
        assert process.poll() is None, "it ended before it was killed"
        found = job.parent.glob("runs/*/checkpoints/*/manifest.json")
        saved.update(path.parent.name for path in found)
        done = results(job.parent)
        return bool(done) and len([name for name in saved if name > min(done)]) >= 5

    wait_until(is_beyond, 300, "checkpoints after the first result", poll_s=0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def test_a_killed_run_registers_the_best_of_all_its_evaluated_checkpoints(
    data: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "x", data)
    settings = [*SETTINGS, BEST]
    kill_driver(job, settings)
    before = results(job.parent)
    run_job(load_job(job, settings), resume=True)

    found = results(job.parent)
    assert before.items() <= found.items()
    best = min(found, key=lambda name: (found[name], name))
    kept = checkpoints_of(str(job.parent / "runs"), only_run(job.parent)).names()
    assert best in kept
    assert best not in kept[-3:], "it is one that was kept from pruning"
    version = candidate(job.parent)
    assert version.tags["note.checkpoint"] == best
    assert version.tags["note.chosen"] == "the best of its run by evaluation/psnr (min)"
    assert float(version.tags["note.evaluation/psnr"]) == found[best]
    assert float(version.tags["note.validation/l1"]) == history(job.parent)[images_of(best)]

    folder = pull("small", tmp_path / "pulled", f"sqlite:///{job.parent}/mlflow.db")
    (snapshot,) = job.parent.glob(f"runs/*/checkpoints/{best}/snapshot.safetensors")
    weights, saved = load_file(folder / "weights.safetensors"), load_file(snapshot)
    assert all(torch.equal(weights[key], saved[key]) for key in saved)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "evaluate", str(folder), "--data",
         f"{data}/validation", "--metrics", "pairs", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    again = {each["metric"]: each for each in json.loads(done.stdout)["measurements"]}
    assert again["psnr"]["value"] == pytest.approx(found[best], rel=1e-9)

    low, high = json.loads(version.tags["note.intervals"])["validation/l1"]
    bootstrap = again["l1"]["interval"]
    assert (low + high) / 2 == pytest.approx(again["l1"]["value"], rel=1e-6)
    ratio = (high - low) / (bootstrap["high"] - bootstrap["low"])
    assert 0.7 < ratio < 2, "5 images: a bootstrap is narrower by the root of 4 / 5 at least"
    card = (folder / "README.md").read_text()
    assert f"{low:.4g} to {high:.4g} | 5 |" in card


def test_without_a_result_the_newest_is_registered_and_the_run_says_so(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "RETRY_S", 0.05)
    monkeypatch.setattr(evaluations, "POLL_S", 0.02)
    monkeypatch.setattr(evaluations, "MAX_FAILURES", 2)
    job = write_job(tmp_path / "x", data)
    with killing_evaluators(1000):
        run_job(load_job(job, [*SETTINGS, BEST, "train.images=16"]))
    run = only_run(job.parent)
    assert run.info.status == "FINISHED"
    assert results(job.parent) == {}
    newest = checkpoints_of(str(job.parent / "runs"), run).names()[-1]
    said = capsys.readouterr().err.splitlines()
    assert (
        f"no evaluation of run {run.info.run_name} has evaluation/psnr (register.best): the "
        "newest checkpoint is registered"
    ) in said
    version = candidate(job.parent)
    assert version.tags["note.checkpoint"] == newest
    assert version.tags["note.chosen"] == "the newest of its run"
