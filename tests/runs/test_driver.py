"""Whole runs in this process without Ray: checkpoints, an MLflow run and a registered model."""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from orchestrator.config.load import load_job
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import DataError, Diverged, EnvironmentProblem
from orchestrator.runs.driver import run_job
from support.drawings import draw_pairs
from support.mlflow_runs import only_dataset
from support.small_runs import checkpoints_of, only_run, write_job

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pairs(tmp_path_factory.mktemp("pairs"), count=20, size=16)


@pytest.mark.parametrize("store", ["s3", "gcs", "az"])
def test_a_job_trains_the_same_weights_from_a_folder_and_from_a_bucket(
    pairs: Path, tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    bucket, snapshots = request.getfixturevalue(store), []
    for name, data, storage in (
        ("folder", str(tmp_path / "data"), str(tmp_path / "runs")),
        ("bucket", f"{bucket}/data", f"{bucket}/runs"),
    ):
        pack_folder(pairs, data, size=16, validation_share=0.2)
        folder = tmp_path / name
        folder.mkdir()
        run_job(load_job(write_job(folder, data, storage)))
        run = only_run(folder)
        assert run.info.status == "FINISHED"
        assert f"{data}/train" in only_dataset(run).source
        checkpoints = checkpoints_of(storage, run)
        assert checkpoints.names()[-1].startswith("000000000024-")
        snapshots.append(checkpoints.snapshot(checkpoints.names()[-1]))
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        assert client.get_model_version_by_alias("small", "candidate").run_id == run.info.run_id
    assert [k for k, v in snapshots[0].items() if not torch.equal(v, snapshots[1][k])] == []


def test_a_run_that_diverges_is_failed_and_saves_no_weights_that_are_not_finite(
    pairs: Path, tmp_path: Path
) -> None:
    data, storage = str(tmp_path / "data"), str(tmp_path / "runs")
    pack_folder(pairs, data, size=16, validation_share=0.2)
    job = write_job(tmp_path, data, storage)
    loaded = load_job(job, ["train.log_every=1000", "train.checkpoint_every=8"])
    model = loaded.job.model.model_copy(update={"learning_rate": 1e30})  # a file may not have it
    loaded = replace(loaded, job=loaded.job.model_copy(update={"model": model}))
    with pytest.raises(Diverged, match="is not finite"):
        run_job(loaded)
    run = only_run(tmp_path)
    assert run.info.status == "FAILED"
    assert checkpoints_of(storage, run).names() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_saves_its_last_step_and_is_killed(
    pairs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    data, storage = str(tmp_path / "data"), str(tmp_path / "runs")
    pack_folder(pairs, data, size=16, validation_share=0.2)
    job = write_job(tmp_path, data, storage)
    command = [sys.executable, "-m", "orchestrator", "run", "--local", str(job)]
    command += ["--set", "train.images=1000000"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - nohup ignores some
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "images/s" in line:
            break
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(180) == 130
    seen = re.search(r"stopped after ([\d,]+) images; the checkpoint is in", rest)
    assert seen is not None, rest
    run = only_run(tmp_path)
    assert run.info.status == "KILLED"
    state = checkpoints_of(storage, run).latest()
    assert state is not None
    assert state.images_seen == int(seen[1].replace(",", ""))


def test_a_missing_gpu_is_an_environment_problem(pairs: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    data, storage = str(tmp_path / "data"), str(tmp_path / "runs")
    pack_folder(pairs, data, size=16, validation_share=0.2)
    job = write_job(tmp_path, data, storage)
    with pytest.raises(EnvironmentProblem, match="torch finds no GPU here"):
        run_job(load_job(job, ["cluster.gpus_per_worker=1"]))
    assert only_run(tmp_path).info.status == "FAILED"


def test_a_corrupt_sample_is_listed_in_an_artifact_and_counted_in_the_metrics(
    pairs: Path, tmp_path: Path
) -> None:
    data, storage = str(tmp_path / "data"), str(tmp_path / "runs")
    pack_folder(pairs, data, size=16, validation_share=0.2)
    packed = open_set(f"{data}/train")
    shard = tmp_path / "data/train" / packed.index.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(packed.table(0).starts[2]) + 700] ^= 1
    shard.write_bytes(content)
    job = load_job(write_job(tmp_path, data, storage), ["data.max_corrupt_fraction=0.1"])
    run_job(job)
    run = only_run(tmp_path)
    assert run.data.metrics["data/rank_0/corrupt_samples"] == 1
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    listing = Path(client.download_artifacts(run.info.run_id, "corrupt_samples.txt", str(tmp_path)))
    (line,) = listing.read_text().splitlines()
    assert line.startswith(f"{data}/train/{shard.name}, sample 2: the bytes differ from those")
    again = load_job(write_job(tmp_path, data, storage), ["data.max_corrupt_fraction=0"])
    message = r"corrupt samples on this worker: 1, but data\.max_corrupt_fraction allows 0"
    with pytest.raises(DataError, match=message):
        run_job(again)
