"""Start a small run in MLflow, and read back what was logged to it."""

from mlflow import MlflowClient
from mlflow.entities import Dataset, Run

from orchestrator.config.job import Job
from orchestrator.config.paths import resolve_paths
from orchestrator.tracking import RunRef, start_run

RENDERED = """\
name: tiny
model: {name: pix2pix, image_size: 16, betas: [0.5, 0.999]}
data: {train: s3://sets/train, validation: null}
train: {epochs: 1, learning_rate: 1e-4}
tracking: {uri: "http://robot:geheim@mlflow.example:5000"}
"""
AS_GIVEN = "# tiny\nname: tiny\ntracking: {uri: 'http://robot:geheim@mlflow.example:5000'}\n"


def make_job(uri: str, train: str = "s3://sets/train", retry_timeout_s: float = 0) -> Job:
    """A job called ``tiny`` with this tracking server."""
    return Job.model_validate(
        {
            "name": "tiny",
            "model": {"name": "pix2pix", "image_size": 16, "filters": 4, "receptive_field": 16},
            "data": {"train": train},
            "train": {"epochs": 1, "batch_size": 2},
            "tracking": {"uri": uri, "retry_timeout_s": retry_timeout_s},
        }
    )


def start_tiny_run(uri: str, retry_timeout_s: float = 60, run_name: str = "tiny-1") -> RunRef:
    """Start a run of that job; its rendering holds a password."""
    return start_run(
        resolve_paths(make_job(uri, retry_timeout_s=retry_timeout_s)),
        rendered=RENDERED,
        text=AS_GIVEN,
        file_name="jobs/tiny.yaml",
        digest="d" * 64,
        run_name=run_name,
    )


def only_dataset(run: Run) -> Dataset:
    """The one dataset of a run."""
    assert run.inputs is not None
    (inputs,) = run.inputs.dataset_inputs
    return inputs.dataset


def runs_of(client: MlflowClient, experiment_name: str) -> list[Run]:
    """The runs of an experiment."""
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def logged_steps(client: MlflowClient, run: RunRef, key: str) -> list[int]:
    """The steps of a metric's points."""
    return [metric.step for metric in client.get_metric_history(run.run_id, key)]
