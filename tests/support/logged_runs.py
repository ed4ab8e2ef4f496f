"""Runs with points of one's own in a real MLflow database and a storage, without training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from orchestrator.run_report.run_address import RunAddress, find_run
from orchestrator.runs.record import RunRecord
from orchestrator.storage.open import open_storage
from services.databases import create_mlflow_database

from .mlflow_runs import start_tiny_run

JOB = """\
name: tiny
model: {{name: {model}, image_size: 16}}
data: {{train: "s3://robot:geheim@sets/train", validation: sets/val}}
train: {{epochs: 1, batch_size: 4}}
cost: {{cpu_hour: 0.5, currency: EUR}}
tracking: {{uri: "{uri}"}}
"""
DIGEST = "d" * 40


def database(folder: Path) -> str:
    """Address of the MLflow database of ``folder``, which is created."""
    path = folder / "mlflow.db"
    if not path.exists():
        create_mlflow_database(path)
    return f"sqlite:///{path}"


def logged_run(
    folder: Path,
    name: str,
    metrics: Mapping[str, Mapping[int, float]],
    pictures: Mapping[str, list[int]] | None = None,
    model: str = "began",
) -> RunAddress:
    """Log a run to the database in ``folder`` and write its records to the storage there."""
    uri = database(folder)
    run = start_tiny_run(uri, run_name=name)
    client = MlflowClient(uri)
    points = [Metric(k, v, 1, step) for k, series in metrics.items() for step, v in series.items()]
    for start in range(0, len(points), 1000):
        client.log_batch(run.run_id, metrics=points[start : start + 1000])
    for key, steps in (pictures or {}).items():
        for step in steps:
            client.log_image(run.run_id, shade(step), key=key, step=step)
    storage = open_storage(str(folder / "runs"))
    record = RunRecord(name, "tiny", run.run_id, run.experiment_id, DIGEST)
    record.write(storage, JOB.format(model=model, uri=uri))
    return find_run(name, str(folder / "runs"), None)


def shade(step: int, side: int = 40) -> Image.Image:
    """A picture of one grey, which tells the step that it was logged at."""
    return Image.new("RGB", (side, side), (step % 256,) * 3)


def noise(path: Path, side: int, seed: int) -> Path:
    """A picture that no format makes small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
