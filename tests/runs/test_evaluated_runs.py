"""Real runs with evaluations beside the training: killed, stopped, registered and refused."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import psutil
import pytest
import torch

from orchestrator.config.load import load_job
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import DataError, UsageError
from orchestrator.registry.registry import pull
from orchestrator.runs import evaluations
from orchestrator.runs.driver import run_job
from orchestrator.runs.evaluation_task import read_record
from orchestrator.storage.open import open_storage
from support.evaluators import killing_evaluators
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job

REGISTERED = "register={name: small}"
SETTINGS = ["train.images=40", "train.checkpoint_every=8", "train.log_every=4", "register=null"]
EVALUATE = "evaluate={metrics: [pairs]}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "RETRY_S", 0.05)
    monkeypatch.setattr(evaluations, "POLL_S", 0.02)


def orchestrator(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def histories(folder: Path) -> dict[str, list[tuple[int, float]]]:
    client, run = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db"), only_run(folder)
    found = {}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        found[name] = [(point.step, point.value) for point in points]
    return found


@pytest.mark.slow
def test_kills_of_the_evaluator_change_neither_the_training_nor_a_result(
    data: str, tmp_path: Path
) -> None:
    plain, killed = write_job(tmp_path / "plain", data), write_job(tmp_path / "killed", data)
    run_job(load_job(plain, SETTINGS))
    with killing_evaluators(20) as pids:
        run_job(load_job(killed, [*SETTINGS, EVALUATE]))
    assert len(set(pids)) == 20

    runs = [only_run(job.parent) for job in (plain, killed)]
    folders = [
        checkpoints_of(str(job.parent / "runs"), run)
        for job, run in zip((plain, killed), runs, strict=True)
    ]
    states = [each.load(each.names()[-1]) for each in folders]
    for kind in ("networks", "snapshot", "optimizers"):
        expected, found = (getattr(state, kind) for state in states)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    curves = [histories(job.parent) for job in (plain, killed)]
    for name in ("generator/loss", "validation/l1"):
        assert curves[0][name] == curves[1][name]

    last = folders[1].names()[-1]
    done = orchestrator(
        "evaluate", f"{tmp_path}/killed/runs/{runs[1].info.run_name}/checkpoints/{last}",
        "--data", f"{data}/validation", "--metrics", "pairs", "--json",
    )  # fmt: skip
    by_hand = {each["metric"]: each["value"] for each in json.loads(done.stdout)["measurements"]}
    assert set(by_hand) == {"l1", "psnr", "ssim"}
    for metric, value in by_hand.items():
        points = curves[1][f"evaluation/{metric}"]
        steps = [step for step, _ in points]
        assert len(set(steps)) == len(steps)
        step, measured = points[-1]
        assert step == 40
        assert measured == pytest.approx(value, rel=1e-9)


@pytest.mark.slow
def test_the_card_of_the_version_has_the_last_evaluation_with_its_intervals(
    data: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "x", data)
    run_job(load_job(job, [*SETTINGS, EVALUATE, "evaluate.every=40", REGISTERED]))
    uri = f"sqlite:///{job.parent}/mlflow.db"
    version = mlflow.MlflowClient(uri).get_model_version_by_alias("small", "candidate")
    (key,) = open_storage(f"{job.parent}/runs").list(only_run(job.parent).info.run_name + "/eval")
    record = read_record(open_storage(f"{job.parent}/runs"), key)
    l1 = next(each for each in record.measurements if each.metric == "l1")
    assert l1.interval is not None
    row = f"| l1 | {l1.value:.3g} | {l1.interval.low:.3g} to {l1.interval.high:.3g} | 5 |"
    digest = open_set(f"{data}/validation").digest
    card = (pull("small@candidate", tmp_path / "pulled", uri) / "README.md").read_text()
    for text in (card, str(version.description)):
        assert row in text
        assert f"On the set with the digest `{digest}`." in text
        assert "evaluation/l1" not in text
        assert "validation/l1" in text


@pytest.mark.slow
def test_a_stop_while_the_last_evaluation_runs_is_resumed_by_the_same_command(
    data: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "x", data)
    command = ["run", "--local", str(job)]
    for setting in (*SETTINGS, EVALUATE, "evaluate.every=1000"):
        command += ["--set", setting]
    with stopping_when_evaluating():
        stopped = orchestrator(*command)
    assert stopped.returncode == 130, stopped.stderr
    assert only_run(job.parent).info.status == "KILLED"
    assert "evaluation/l1" not in histories(job.parent)
    resumed = orchestrator(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [step for step, _ in histories(job.parent)["evaluation/l1"]] == [40]
    assert only_run(job.parent).info.status == "FINISHED"


@contextmanager
def stopping_when_evaluating() -> Iterator[None]:
    """Send SIGTERM to the driver under this process once its evaluator runs."""
    over = threading.Event()

    def stop() -> None:
        while not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    line = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if "evaluation_process" in line:
                    parent = process.parent()
                    assert parent is not None
                    parent.send_signal(signal.SIGTERM)
                    return

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("evaluate.metrics=[likelihood]", UsageError, "likelihood"),
        ("evaluate={num_images: 40, metrics: [kid]}", DataError, "has 5 images, too few"),
        ("evaluate={extractor: 'inception:nofile', metrics: [kid]}", DataError, "too few"),
        ("evaluate.gpus=1", UsageError, "needs 1 GPU, 0 for the workers and one more, and there"),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_before_the_run(
    data: str, tmp_path: Path, setting: str, error: type[Exception], message: str
) -> None:
    job = write_job(tmp_path / "x", data)
    with pytest.raises(error, match=message):
        run_job(load_job(job, [*SETTINGS, EVALUATE, setting]))
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    assert client.get_experiment_by_name("small") is None
    assert list(open_storage(f"{job.parent}/runs").list("")) == []
