"""A small pix2pix job that runs in this process, and what its runs leave behind."""

from pathlib import Path

import mlflow
from mlflow.entities import Run

from orchestrator.data.prepare.pack import pack_folder
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from services.databases import create_mlflow_database

from .drawings import draw_pairs

JOB = """\
name: small
model:
  name: pix2pix
  image_size: 16
  filters: 4
  discriminator_filters: 4
  receptive_field: 16
  norm: instance
data: {{train: {data}/train, validation: {data}/validation, augment: {{flip: true}}}}
train: {{images: 24, batch_size: 4}}
cluster: {{workers: 2}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {storage}
register: {{name: small}}
"""
SWEEP = """\
sweep:
  metric: validation/l1
  trials: 2
  space: {model.learning_rate: {choice: [0.0001, 0.0002]}}
"""
"""What makes a small sweep of the job."""


def pack_pairs(folder: Path) -> str:
    """Pack 20 drawn pairs of 16 pixels, with a validation set; return the data folder."""
    pairs = draw_pairs(folder / "pairs", count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


def write_job(folder: Path, data: str, storage: str | None = None) -> Path:
    """Write the job to ``folder``, with an MLflow database there and, by default, its storage."""
    folder.mkdir(exist_ok=True)
    create_mlflow_database(folder / "mlflow.db")
    path = folder / "small.yaml"
    path.write_text(JOB.format(data=data, folder=folder, storage=storage or folder / "runs"))
    return path


def only_run(folder: Path) -> Run:
    """The one MLflow run of the job in ``folder``."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def checkpoints_of(storage: str, run: Run) -> Checkpoints:
    """The checkpoints of ``run`` in ``storage``."""
    return Checkpoints(open_storage(storage), f"{run.info.run_name}/checkpoints", "")
