"""Tiny distributed runs with faults that are injected from within, and what such runs leave."""

import os
import subprocess
from pathlib import Path

import mlflow
import psutil

from orchestrator.diagnostics.compare_runs import RunArtifacts, is_timing_metric
from orchestrator.faults.injection import run_command
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage

from .waiting import wait_until

FAULT_INJECTION = Path(__file__).with_name("fault_injection")
"""Folder for PYTHONPATH; see its sitecustomize.py."""
IMAGES = 1200
JOB = """\
name: small
model:
  name: pix2pix
  image_size: 16
  filters: 4
  discriminator_filters: 4
  receptive_field: 16
  norm: instance
data: {{train: {data}/train, validation: {data}/validation, augment: {{flip: true}}, threads: 1}}
train: {{images: {images}, batch_size: 4, ema_decay: 0.9, log_every: 4, checkpoint_every: 40,
  validate_every: 200, sample_every: 1200}}
cluster: {{workers: 2, max_failures: 20}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
"""


def write_job(folder: Path, data: str, images: int = IMAGES) -> Path:
    """Write the job file of a tiny pix2pix to a new folder, for its results too."""
    folder.mkdir()
    path = folder / "small.yaml"
    path.write_text(JOB.format(data=data, folder=folder, images=images))
    return path


def train_alone(job: Path, settings: tuple[str, ...]) -> None:
    """Train the job in one process, without Ray and faults."""
    command = [*run_command(job, settings), "--local", "--set", "cluster.workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def run_artifacts(folder: Path) -> RunArtifacts:
    """Load what the one run in ``folder`` has left in its storage and in MLflow."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    points: dict[str, float] = {}
    for name in found.data.metrics:
        if is_timing_metric(name):
            continue
        history = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        steps = [step for step, _ in history]
        assert steps == sorted(set(steps)), f"{name}: each point once"
        points |= {f"{name} at {step}": value for step, value in history}
    storage = open_storage(str(folder / "runs"))
    state = Checkpoints(storage, f"{found.info.run_name}/checkpoints", "").latest()
    assert state is not None
    return RunArtifacts(state, points, {})


def trained_shares(folder: Path) -> dict[int, set[tuple[int, ...]]]:
    """Read the shares of each step that any worker has trained on."""
    steps: dict[int, set[tuple[int, ...]]] = {}
    for path in folder.glob("*.shares"):
        for line in path.read_text().splitlines():
            step, *positions = map(int, line.split())
            steps.setdefault(step, set()).add(tuple(positions))
    return steps


def processes_with(folder: Path) -> list[str]:
    """Command lines of the other processes that have ``folder`` in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(folder) in str(process.environ()):
                found.append(" ".join(process.cmdline())[:80])
        except psutil.Error:
            continue
    return found


def assert_no_processes_left(folder: Path) -> None:
    """Wait until no process has ``folder`` in its environment."""
    wait_until(lambda: not processes_with(folder), 60, "the end of all processes", poll_s=0.2)
