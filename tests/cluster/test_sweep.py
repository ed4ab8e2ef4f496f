"""Sweeps on a real Ray cluster: killed, stopped, distributed, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
import ray

from orchestrator.cluster.tune_runner import max_concurrent_trials
from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.fault_injection import RunProcesses
from orchestrator.errors import EnvironmentProblem
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import Sweep, Trial, rank_configs
from orchestrator.sweeps.store import list_sweeps
from support.drawings import draw_pairs
from support.fault_jobs import FAULT_INJECTION, assert_no_processes_left

KILLS = int(os.environ.get("SWEEP_KILLS", "1"))
"""Of the driver and of the cluster, each; a start takes half a minute, and 3 have room."""
JOB = """\
name: small
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16,
  norm: instance}}
data: {{train: {data}/train, validation: {data}/validation, augment: {{flip: true}}, threads: 1}}
train: {{images: 480, batch_size: 4, sample_every: 240}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
register: {{name: small}}
sweep:
  metric: validation/l1
  trials: 3
  report_every: 80
  max_concurrent: {at_once}
  space:
    model.l1_weight: {{loguniform: [10, 300]}}
    model.learning_rate: {{loguniform: [1.0e-4, 1.0e-2]}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweeps")
    pairs = draw_pairs(folder / "pairs", count=40, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


@pytest.fixture(autouse=True)
def slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that all processes of a test have in their environment, and their steps."""
    folder = tmp_path / "punisher"
    folder.mkdir()
    monkeypatch.setenv("FAULT_FOLDER", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(FAULT_INJECTION))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def write(folder: Path, data: str, text: str = JOB, at_once: int = 2) -> Path:
    folder.mkdir()
    path = folder / "small.yaml"
    path.write_text(text.format(data=data, folder=folder, at_once=at_once))
    return path


@contextmanager
def driving(job: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with (job.parent / "said.txt").open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *command], stdout=said, stderr=said
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def carry_out(job: Path, *command: str) -> None:
    with driving(job, *command) as driver:
        assert driver.wait(300) == 0, (job.parent / "said.txt").read_text()[-5000:]


def the_sweep(job: Path) -> Sweep:
    (store,) = list_sweeps(open_storage(str(job.parent / "runs")))
    return store.load()


def num_results(job: Path) -> int:
    files = (job.parent / "runs").glob("sweeps/*/trials/*.json")
    return sum(len(json.loads(file.read_text())["results"]) for file in files)


def wait_for_results(job: Path, number: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while num_results(job) < number:
        assert driver.poll() is None, (job.parent / "said.txt").read_text()[-5000:]
        assert time.monotonic() < deadline, (job.parent / "said.txt").read_text()[-5000:]
        time.sleep(0.05)


def what_happened(trial: Trial) -> tuple[object, ...]:
    results = [(result.images_seen, result.values) for result in trial.results]
    return trial.number, trial.status, dict(trial.values), results


def training_processes(driver: int) -> list[int]:
    """Those that Ray Tune has started."""
    return RunProcesses(driver).named("ray::ResourceTrainable")


def kill_driver(driver: int) -> None:
    os.kill(driver, signal.SIGKILL)


def kill_cluster(driver: int) -> None:
    """Everything that the driver has started, at once."""
    processes = RunProcesses(driver).named("")
    for pid in processes:
        if pid != driver:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_sweep_whose_driver_and_cluster_are_killed_ends_like_the_baseline(
    tmp_path: Path, data: str, slowed: Path
) -> None:
    calm = write(tmp_path / "calm", data)
    carry_out(calm, "run", str(calm))
    # One at a time: the starts, which are most of the time, are faster on few cores.
    job = write(tmp_path / "punished", data, at_once=1)
    command = ["run", str(job)]
    for number, kill in enumerate([kill_driver, kill_cluster] * KILLS):
        with driving(job, *command) as driver:
            wait_for_results(job, 2 + 2 * number, driver)
            kill(driver.pid)
            assert driver.wait(90) != 0
        name = the_sweep(job).name
        command = ["sweep", "resume", f"{job.parent}/runs/sweeps/{name}"]
    carry_out(job, *command)
    expected, found = the_sweep(calm), the_sweep(job)
    assert [what_happened(t) for t in found.trials] == [what_happened(t) for t in expected.trials]
    assert [t.status for t in found.trials] == ["finished"] * 3
    assert rank_configs(found)[0].means == rank_configs(expected)[0].means
    assert found.state == "finished"
    assert runs_in_mlflow(job) == runs_in_mlflow(calm) == {"parent": 1, "nested": 3, "FINISHED": 4}
    assert_no_processes_left(slowed)


def runs_in_mlflow(job: Path) -> dict[str, int]:
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in found if run not in parents]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parents[0].info.run_id}
    counts = Counter(run.info.status for run in found)
    return {"parent": len(parents), "nested": len(nested), **counts}


def test_a_trial_of_two_workers_resumes_after_a_stop_and_misses_no_result(
    tmp_path: Path, data: str, slowed: Path
) -> None:
    job = write(tmp_path / "two", data, JOB.replace("trials: 3", "trials: 1"))
    settings = ("--set", "cluster.workers=2", "--set", "train.images=640")
    with driving(job, "run", str(job), *settings) as driver:
        wait_for_results(job, 2, driver)
        (slowed / "slow").touch()  # so that it does not end before it is told to
        place = f"{job.parent}/runs/sweeps/{the_sweep(job).name}"
        carry_out(job, "sweep", "stop", place)
        assert driver.wait(60) == 130
    (slowed / "slow").unlink()
    stopped = the_sweep(job)
    assert stopped.state == "stopped"
    assert "KILLED" in runs_in_mlflow(job)
    carry_out(job, "sweep", "resume", place)
    found = the_sweep(job)
    (trial,) = found.trials
    assert trial.status == "finished"
    assert [result.images_seen for result in trial.results] == list(range(80, 641, 80))
    assert runs_in_mlflow(job) == {"parent": 1, "nested": 1, "FINISHED": 2}
    assert_no_processes_left(slowed)


def test_pbt_copies_complete_checkpoints_although_a_process_hangs(
    tmp_path: Path, data: str
) -> None:
    job = write(tmp_path / "pbt", data)
    settings = ["sweep.scheduler=pbt", "sweep.grace_images=160", "train.images=320"]
    with driving(job, "run", str(job), *(p for s in settings for p in ("--set", s))) as driver:
        wait_for_results(job, 1, driver)
        os.kill(training_processes(driver.pid)[0], signal.SIGSTOP)  # it is found and ended
        assert driver.wait(300) == 0, (job.parent / "said.txt").read_text()[-5000:]
    found = the_sweep(job)
    assert sum(trial.num_failures for trial in found.trials) == 1
    assert "sends no heartbeat" in (job.parent / "said.txt").read_text()
    assert [trial.status for trial in found.trials] == ["finished"] * 3
    (copied,) = [trial for trial in found.trials if len(trial.segments) > 1]
    last = copied.segments[-1]
    assert last.parent is not None
    parent = found.trials[last.parent]
    assert last.source_checkpoint is not None
    assert last.source_checkpoint.rpartition("/checkpoints/")[0].endswith(parent.segments[0].run)
    worst_first = sorted(found.trials, key=lambda trial: -trial.results[1].values[0])
    assert (copied, parent) == (worst_first[0], worst_first[-1])
    assert copied.results[2].values[0] < copied.results[1].values[0], "it goes on from a better one"


def test_the_cluster_limits_the_number_of_concurrent_trials(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "room", data)
    # Ray reads it once in a process: with a token now, other files' clusters could not answer us.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False)
    try:

        def room(*settings: str) -> int:
            return max_concurrent_trials(load_job(path, settings).job)

        assert room("sweep.max_concurrent=null") == 5
        assert room() == 2
        assert room("sweep.max_concurrent=null", "cluster.workers=2") == 2
        assert room("sweep.max_concurrent=null", "cluster.cpus_per_worker=3") == 1
        with pytest.raises(EnvironmentProblem, match="needs 6 CPUs and the cluster has 5"):
            room("cluster.workers=2", "cluster.cpus_per_worker=3")
        with pytest.raises(EnvironmentProblem, match="needs 1 GPUs and the cluster has 0"):
            room("cluster.gpus_per_worker=1")
    finally:
        ray.shutdown()
