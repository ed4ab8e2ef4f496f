"""A new run starts from another one's checkpoint with a job of its own."""

from pathlib import Path

import mlflow
import pytest
import torch
from test_run import checkpoints, the_run, write_job

from orchestrator.config.load import load_job
from orchestrator.config.paths import resolve_places
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import UsageError
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.driver import run_job
from orchestrator.storage.open import open_storage
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import train
from orchestrator.training.warm_start import adapted
from services.databases import ready
from support.drawings import draw_pairs
from support.fakes import ListRecorder, MemoryCheckpoints

SETTINGS = ["register=null", "train.checkpoint_every=8", "cluster.workers=1"]
LONGER = [*SETTINGS, "train.images=32", "model.learning_rate=0.003"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file, of which a run has finished."""
    folder = tmp_path_factory.mktemp("fork")
    pairs = draw_pairs(folder / "pairs", count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    job = write_job(folder, str(folder / "data"), str(folder / "runs"))
    run_job(load_job(job, [*SETTINGS, "train.images=16"]))
    return job


def first_run(begun: Path) -> str:
    """Where the run of ``begun`` is."""
    return str(sorted(begun.parent.glob("runs/*/run.json"))[0].parent)


def test_a_fork_trains_as_one_does_by_hand_from_the_adapted_state(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = first_run(begun)
    places = [f"storage={tmp_path}/runs", f"tracking.uri=sqlite:///{ready(tmp_path / 'mlflow.db')}"]
    loaded = load_job(begun, [*LONGER, *places])
    run_job(loaded, fork=uri)
    run = the_run(tmp_path)
    source = Checkpoints(
        open_storage(str(begun.parent / "runs")), f"{Path(uri).name}/checkpoints", ""
    )
    assert run.data.tags["forked_from"] == f"{uri}/checkpoints/{source.names()[-1]}"
    assert run.data.tags["forked_images_seen"] == "16"
    assert "after 16 images" in capsys.readouterr().err
    start = source.latest()
    assert start is not None
    job = resolve_places(loaded.job)
    memory = MemoryCheckpoints([adapted(start, job).state])
    worker = Worker(ListRecorder(), memory, torch.device("cpu"))
    train(job, ShardStream(job, rank=0, world_size=1), worker)
    state, by_hand = checkpoints(str(tmp_path / "runs"), run).latest(), memory.latest()
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
    ("settings", "options", "told"),
    [
        (["model.filters=8"], {}, r"the networks of this job are others:\n  .*in the checkpoint"),
        (["train.images=16"], {}, "has seen 16 images, and this job ends after 16"),
        ([], {"fork": "nowhere/run"}, "there are no checkpoints at nowhere/run"),
        ([], {"resume": True}, "give one of them"),
    ],
)
def test_a_fork_that_cannot_be_is_refused_before_there_is_a_run(
    begun: Path, tmp_path: Path, settings: list[str], options: dict[str, str | bool], told: str
) -> None:
    address = f"sqlite:///{ready(tmp_path / 'mlflow.db')}"
    loaded = load_job(begun, [*LONGER, f"tracking.uri={address}", *settings])
    resume, fork = bool(options.get("resume")) or None, str(options.get("fork", first_run(begun)))
    with pytest.raises(UsageError, match=told) as caught:
        run_job(loaded, resume=resume, fork=fork)
    assert caught.value.exit_code == 2
    assert mlflow.MlflowClient(address).get_experiment_by_name("small") is None
