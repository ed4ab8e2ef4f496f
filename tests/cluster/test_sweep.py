"""Sweeps on a real Ray cluster: killed, stopped and distributed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest

from orchestrator.cluster.tune_runner import max_concurrent_trials
from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import EnvironmentProblem
from orchestrator.faults.run_processes import RunProcesses
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import Sweep, Trial, rank_configs
from orchestrator.sweeps.store import list_sweeps
from services.ray_connection import ray_in_this_process
from support.drawings import draw_pairs
from support.fault_jobs import FAULT_INJECTION, assert_no_processes_left
from support.waiting import wait_until

KILLS = int(os.environ.get("SWEEP_KILLS", "1"))
"""How often the driver and the cluster are killed, each; a restart takes half a minute."""
pytestmark = [pytest.mark.ray, pytest.mark.slow]
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
  max_concurrent: {num_concurrent}
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
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let all processes of a test inject faults, and return the folder that controls them."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("FAULT_FOLDER", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(FAULT_INJECTION))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def write_job(folder: Path, data: str, text: str = JOB, num_concurrent: int = 2) -> Path:
    folder.mkdir()
    path = folder / "small.yaml"
    path.write_text(text.format(data=data, folder=folder, num_concurrent=num_concurrent))
    return path


@contextmanager
def start_driver(job: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with (job.parent / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *command], stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def log_tail(job: Path) -> str:
    return (job.parent / "log.txt").read_text()[-5000:]


def run_to_end(job: Path, *command: str) -> None:
    with start_driver(job, *command) as driver:
        assert driver.wait(300) == 0, log_tail(job)


def load_sweep(job: Path) -> Sweep:
    (store,) = list_sweeps(open_storage(str(job.parent / "runs")))
    return store.load()


def num_results(job: Path) -> int:
    files = (job.parent / "runs").glob("sweeps/*/trials/*.json")
    return sum(len(json.loads(file.read_text())["results"]) for file in files)


def wait_for_results(job: Path, number: int, driver: subprocess.Popen[bytes]) -> None:
    def has_results() -> bool:
        assert driver.poll() is None, log_tail(job)
        return num_results(job) >= number

    wait_until(has_results, 300, f"{number} intermediate results")


def outcome(trial: Trial) -> tuple[object, ...]:
    results = [(result.images_seen, result.values) for result in trial.results]
    return trial.number, trial.status, dict(trial.values), results


def trial_processes(driver: int) -> list[int]:
    """Find the processes that Ray Tune has started for trials."""
    return RunProcesses(driver).named("ray::ResourceTrainable")


def kill_driver(driver: int) -> None:
    os.kill(driver, signal.SIGKILL)


def kill_cluster(driver: int) -> None:
    """Kill everything that the driver has started, at once."""
    processes = RunProcesses(driver).named("")
    for pid in processes:
        if pid != driver:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_controller(driver: int) -> None:
    """Kill the actor that holds the study."""
    (controller,) = RunProcesses(driver).named("ray::SweepController")
    os.kill(controller, signal.SIGKILL)


def kill_raylet(driver: int) -> None:
    os.kill(RunProcesses(driver).named("/raylet/raylet")[0], signal.SIGKILL)


def test_a_sweep_whose_driver_and_cluster_are_killed_ends_like_the_baseline(
    tmp_path: Path, data: str, faults: Path
) -> None:
    baseline = write_job(tmp_path / "baseline", data)
    run_to_end(baseline, "run", str(baseline))
    # One trial at a time: processes, whose start takes most of the time, start faster alone.
    job = write_job(tmp_path / "killed", data, num_concurrent=1)
    lost = [kill_cluster, kill_controller, kill_raylet]
    for number, kill in enumerate([kill_driver, *lost] * KILLS):
        with start_driver(job, "run", str(job)) as driver:
            wait_for_results(job, 2 + 2 * number, driver)
            kill(driver.pid)
            assert driver.wait(90) == (-signal.SIGKILL if kill is kill_driver else 75)
    log = (job.parent / "log.txt").read_text()
    assert log.count("error: the Ray cluster was lost: ") == len(lost) * KILLS
    assert log.count("error: ") == len(lost) * KILLS
    assert "Traceback" not in log
    name = load_sweep(job).name
    run_to_end(job, "sweep", "resume", f"{job.parent}/runs/sweeps/{name}")
    expected, found = load_sweep(baseline), load_sweep(job)
    assert [outcome(t) for t in found.trials] == [outcome(t) for t in expected.trials]
    assert [t.status for t in found.trials] == ["finished"] * 3
    assert rank_configs(found)[0].means == rank_configs(expected)[0].means
    assert found.state == "finished"
    assert (
        runs_in_mlflow(job) == runs_in_mlflow(baseline) == {"parent": 1, "nested": 3, "FINISHED": 4}
    )
    (value,) = rank_configs(found)[0].means
    for each in (baseline, job):
        shown, low, high = interval_of_the_version(each)
        assert shown == pytest.approx(value, rel=1e-3)
        assert low < value < high
    assert_no_processes_left(faults)


def interval_of_the_version(job: Path) -> tuple[float, float, float]:
    """The validation's l1 in the card of the registered version, and the ends of its interval."""
    client = mlflow.MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    card = client.get_model_version_by_alias("small", "candidate").description or ""
    row = re.search(r"^\| validation/l1 \| (\S+) \| (\S+) to (\S+) \|", card, re.M)
    assert row is not None, card
    value, low, high = map(float, row.groups())
    return value, low, high


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
    tmp_path: Path, data: str, faults: Path
) -> None:
    job = write_job(tmp_path / "two", data, JOB.replace("trials: 3", "trials: 1"))
    settings = ("--set", "cluster.workers=2", "--set", "train.images=640")
    with start_driver(job, "run", str(job), *settings) as driver:
        wait_for_results(job, 2, driver)
        (faults / "slow").touch()  # so that it does not finish before it is stopped
        place = f"{job.parent}/runs/sweeps/{load_sweep(job).name}"
        run_to_end(job, "sweep", "stop", place)
        assert driver.wait(60) == 130
    (faults / "slow").unlink()
    stopped = load_sweep(job)
    assert stopped.state == "stopped"
    assert "KILLED" in runs_in_mlflow(job)
    run_to_end(job, "sweep", "resume", place)
    found = load_sweep(job)
    (trial,) = found.trials
    assert trial.status == "finished"
    assert [result.images_seen for result in trial.results] == list(range(80, 641, 80))
    assert runs_in_mlflow(job) == {"parent": 1, "nested": 1, "FINISHED": 2}
    assert_no_processes_left(faults)


def test_pbt_copies_complete_checkpoints_although_a_process_hangs(
    tmp_path: Path, data: str
) -> None:
    job = write_job(tmp_path / "pbt", data)
    settings = ["sweep.scheduler=pbt", "sweep.grace_images=160", "train.images=320"]
    with start_driver(job, "run", str(job), *(p for s in settings for p in ("--set", s))) as driver:
        wait_for_results(job, 1, driver)
        os.kill(trial_processes(driver.pid)[0], signal.SIGSTOP)  # it is found and killed
        assert driver.wait(300) == 0, log_tail(job)
    found = load_sweep(job)
    assert sum(trial.num_failures for trial in found.trials) == 1
    assert "sends no heartbeat" in (job.parent / "log.txt").read_text()
    assert [trial.status for trial in found.trials] == ["finished"] * 3
    (copied,) = [trial for trial in found.trials if len(trial.segments) > 1]
    last = copied.segments[-1]
    assert last.parent is not None
    parent = found.trials[last.parent]
    assert last.source_checkpoint is not None
    assert last.source_checkpoint.rpartition("/checkpoints/")[0].endswith(parent.segments[0].run)
    worst_first = sorted(found.trials, key=lambda trial: -trial.results[1].values[0])
    assert (copied, parent) == (worst_first[0], worst_first[-1])
    assert copied.results[2].values[0] < copied.results[1].values[0], (
        "the copy continues from a better state"
    )


def test_the_cluster_limits_the_number_of_concurrent_trials(tmp_path: Path, data: str) -> None:
    path = write_job(tmp_path / "room", data)
    with ray_in_this_process(num_cpus=5):

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
