"""A new run starts from another run's checkpoint, with its own job."""

from pathlib import Path

import mlflow
import pytest
import torch

from orchestrator.config.load import load_job
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import UsageError
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.driver import run_job
from orchestrator.runs.resolved_job import resolve_job
from orchestrator.storage.open import open_storage
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import train
from orchestrator.training.warm_start import warm_start
from services.databases import create_mlflow_database
from support.fakes import ListRecorder, MemoryCheckpoints
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job

pytestmark = pytest.mark.slow

SETTINGS = ["register=null", "train.checkpoint_every=8", "cluster.workers=1"]
LONGER = [*SETTINGS, "train.images=32", "model.learning_rate=0.003"]


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file whose first run has finished."""
    folder = tmp_path_factory.mktemp("fork")
    job = write_job(folder, pack_pairs(folder))
    run_job(load_job(job, [*SETTINGS, "train.images=16"]))
    return job


def first_run(job_file: Path) -> str:
    """Folder of the first run."""
    return str(sorted(job_file.parent.glob("runs/*/run.json"))[0].parent)


def test_a_forked_run_equals_a_training_from_the_warm_started_state(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = first_run(job_file)
    database = create_mlflow_database(tmp_path / "mlflow.db")
    overrides = [f"storage={tmp_path}/runs", f"tracking.uri=sqlite:///{database}"]
    loaded = load_job(job_file, [*LONGER, *overrides])
    run_job(loaded, init_from=uri)
    run = only_run(tmp_path)
    source = Checkpoints(
        open_storage(str(job_file.parent / "runs")), f"{Path(uri).name}/checkpoints", ""
    )
    assert run.data.tags["forked_from"] == f"{uri}/checkpoints/{source.names()[-1]}"
    assert run.data.tags["forked_images_seen"] == "16"
    assert "after 16 images" in capsys.readouterr().err
    start = source.latest()
    assert start is not None
    job = resolve_job(loaded).job
    memory = MemoryCheckpoints([warm_start(start, job).state])
    worker = Worker(ListRecorder(), memory, torch.device("cpu"))
    train(job, ShardStream(job, rank=0, world_size=1), worker)
    state, by_hand = checkpoints_of(str(tmp_path / "runs"), run).latest(), memory.latest()
    assert state is not None
    assert by_hand is not None
    assert state.images_seen == by_hand.images_seen == 32
    for kind in ("networks", "snapshot", "optimizers"):
        ours, theirs = getattr(state, kind), getattr(by_hand, kind)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    groups = state.settings["generator"]["groups"]
    assert [group["initial_lr"] for group in groups] == [0.003] * len(groups)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (
            ["model.filters=8"],
            {},
            r"the networks of this job differ from .*:\n  .*in the checkpoint",
        ),
        (["train.images=16"], {}, "has seen 16 images, and this job ends after 16"),
        ([], {"init_from": "nowhere/run"}, "there are no checkpoints at nowhere/run"),
        ([], {"resume": True}, "use one of them"),
    ],
)
def test_a_fork_that_is_not_possible_is_refused_before_a_run_is_created(
    job_file: Path,
    tmp_path: Path,
    settings: list[str],
    options: dict[str, str | bool],
    message: str,
) -> None:
    address = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    loaded = load_job(job_file, [*LONGER, f"tracking.uri={address}", *settings])
    resume = bool(options.get("resume")) or None
    init_from = str(options.get("init_from", first_run(job_file)))
    with pytest.raises(UsageError, match=message) as caught:
        run_job(loaded, resume=resume, init_from=init_from)
    assert caught.value.exit_code == 2
    assert mlflow.MlflowClient(address).get_experiment_by_name("small") is None
