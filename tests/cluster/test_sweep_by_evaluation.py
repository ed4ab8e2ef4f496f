"""A sweep of a plain GAN by the KID that is measured beside each trial's training."""

import math
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest

from orchestrator.models.base import ModelConfig
from orchestrator.runs.evaluation_task import read_record
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import rank_configs
from orchestrator.sweeps.store import list_sweeps
from support.packed_sets import write_set

JOB = """\
name: gan
model: {{name: dcgan, image_size: 16, filters: 4, latent_size: 8}}
data: {{train: {folder}/train, validation: {folder}/validation, threads: 1}}
train: {{images: 320, batch_size: 8}}
guard: {{collapse: "off"}}
evaluate: {{metrics: [kid], num_images: 50, every: 320}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
register: {{name: gan}}
sweep:
  metric: evaluation/kid.lite0
  trials: 2
  max_concurrent: 2
  space: {{model.learning_rate: {{choice: [1.0e-5, 1.0e-2]}}}}
"""


def run_and_kill_evaluations(command: list[str], most: int) -> set[int]:
    """Run a command that succeeds, and kill the first ``most`` evaluations; return their numbers.

    Only those below this command are killed: other tests run beside this one.
    """
    killed: set[int] = set()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(killed) < most:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if child.pid not in killed and "ray::attempt_evaluation" in " ".join(
                        child.cmdline()
                    ):
                        child.kill()
                        killed.add(child.pid)
            time.sleep(0.05)
        _, messages = process.communicate()
    assert process.returncode == 0, messages[-3000:]
    return killed


@pytest.mark.ray
@pytest.mark.slow
def test_the_trial_with_the_smallest_kid_is_registered_whatever_was_killed(tmp_path: Path) -> None:
    job = tmp_path / "gan.yaml"
    job.write_text(JOB.format(folder=tmp_path))
    config = ModelConfig.model_validate({"name": "dcgan", "image_size": 16})
    write_set(tmp_path / "train", config, 80)
    write_set(tmp_path / "validation", config, 60, first=80)
    command = [sys.executable, "-m", "orchestrator", "run", str(job)]
    killed = run_and_kill_evaluations(command, most=2)
    assert len(killed) == 2

    storage = open_storage(f"{tmp_path}/runs")
    (store,) = list_sweeps(storage)
    sweep, measured = store.load(), {}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for trial in sweep.trials:
        (key,) = storage.list(f"{trial.segments[-1].run}/evaluations/")
        record = read_record(storage, key)
        measured[trial.number] = record.points()["evaluation/kid.lite0"]
        assert record.images_seen == trial.images_seen == 320
        assert trial.last_value() == measured[trial.number]
        run = trial.segments[-1].mlflow_run_id
        assert run is not None
        (point,) = client.get_metric_history(run, "evaluation/kid.lite0")
        assert (point.step, point.value) == (320, measured[trial.number])
    assert len(set(measured.values())) == 2
    assert all(map(math.isfinite, measured.values()))
    best = min(measured, key=lambda number: measured[number])
    assert rank_configs(sweep)[0].trials == (best,)
    version = client.get_model_version_by_alias("gan", "candidate")
    best_run = next(t for t in sweep.trials if t.number == best).segments[-1].mlflow_run_id
    assert version.run_id == best_run
