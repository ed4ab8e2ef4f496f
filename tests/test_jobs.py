"""Every job in jobs/, made small: it trains and registers a model, which can be pulled."""

import json
import math
from pathlib import Path

import mlflow
import pytest
import torch

from orchestrator.config.load import LoadedJob, load_job
from orchestrator.models.base import Batch, GenerativeModel, ModelConfig, build_model
from orchestrator.models.parts.abilities import HasLikelihood
from orchestrator.registry.bundle import load_bundle
from orchestrator.registry.registry import pull
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.driver import run_job
from orchestrator.storage.open import open_storage
from services.databases import create_mlflow_database
from support.packed_sets import write_set
from support.small import SMALL, condition_for, small_batch

pytestmark = pytest.mark.slow

JOBS = sorted(Path(__file__).parent.parent.glob("jobs/*.yaml"))
TRAIN = {
    "epochs": None,
    "images": 8,
    "batch_size": 4,
    "microbatch_size": None,
    "log_every": 4,
    "checkpoint_every": None,
    "sample_every": None,
    "validate_every": None,
}


def shrink(path: Path, folder: Path) -> LoadedJob:
    """Return the job with a small model and small synthetic data, on one worker."""
    whole = load_job(path)
    name = whole.job.model.name
    model = {"image_size": 16, **SMALL.get(name, {})}
    places: dict[str, object] = {
        "data.source": None,
        "data.train": str(folder / "data/train"),
        "data.validation": str(folder / "data/validation"),
        "data.augment": {},
        "cluster.workers": 1,
        "storage": str(folder / "runs"),
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "sweep": None,  # a single run
    }
    settings = {
        **{f"model.{key}": value for key, value in model.items()},
        **{f"train.{key}": value for key, value in TRAIN.items()},
        **places,
    }
    loaded = load_job(path, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    create_mlflow_database(folder / "mlflow.db")
    write_set(folder / "data/train", loaded.job.model, 12)
    write_set(folder / "data/validation", loaded.job.model, 5, first=100)
    return loaded


def draw_samples(model: GenerativeModel, config: ModelConfig) -> torch.Tensor:
    batch: Batch = small_batch(config, 2)
    return model.sample(torch.tensor([3, 8]), condition_for(config, batch))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_small_version_of_a_job_trains_and_its_registered_model_can_be_pulled(
    path: Path, tmp_path: Path
) -> None:
    loaded = shrink(path, tmp_path)
    job = loaded.job
    run_job(loaded)

    assert job.register_as is not None
    uri = job.tracking.uri
    pulled = load_bundle(pull(job.register_as.name, tmp_path / "pulled", uri))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(job.tracking.experiment or job.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    checkpoints = Checkpoints(
        open_storage(job.storage), f"{run.info.run_name}/checkpoints", loaded.render()
    )
    twin = build_model(job.model)
    twin.inference_module().load_state_dict(checkpoints.snapshot(checkpoints.names()[-1]))
    torch.testing.assert_close(draw_samples(pulled, job.model), draw_samples(twin, job.model))

    metrics = run.data.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    if isinstance(twin, HasLikelihood):
        nats = [name for name in metrics if name.startswith("validation/") and "nats" in name]
        values = job.model.channels * job.model.image_size**2
        assert nats
        for name in nats:
            bits = metrics[name.replace("nll_nats", "nats").replace("nats", "bits_per_dim")]
            assert metrics[name] == pytest.approx(bits * values * math.log(2))
            assert ("binarized" in name) == (job.data.binarize is not None)
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "images")}
    assert any(name.startswith("images/samples+step+8+") for name in pictures)
