"""Two processes with gloo, compared with one process with the same global batch."""

import json
from pathlib import Path

import pytest
import torch

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, GenerativeModel, build_model, model_names
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import train
from orchestrator.training.step import TrainingStep, average_metrics
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream, small_job, without_clock
from support.ranks import WORLD_SIZE, on_two_ranks
from support.small import small_batch, small_config

pytestmark = pytest.mark.slow

OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "microbatches": {"microbatch_size": 1},
    "clipped": {"max_grad_norm": 0.5},
    "ema": {"ema_decay": 0.9},
}


def train_all(rank: int, world: int, out: Path) -> None:
    """Train a job for each of OPTIONS as one of ``world`` workers, and write the results."""
    for name, options in OPTIONS.items():
        recorder, checkpoints = ListRecorder(), MemoryCheckpoints()
        worker = Worker(recorder, checkpoints, torch.device("cpu"), rank, world)
        job = small_job({"dropout": 0.0}, images=16, log_every=4, checkpoint_every=4, **options)
        train(job, MemoryStream(rank=rank, world=world), worker)
        (out / f"{name}-{rank}.json").write_text(json.dumps(recorder.points))
        torch.save([s.networks for s in checkpoints.states], out / f"{name}-{rank}.pt")


def plain(name: str) -> GenerativeModel | None:
    """Build the small model without dropout; None if it has batch norm.

    CycleGAN has no pool of past images here, because each worker has its own.
    """
    torch.manual_seed(0)
    config = small_config(name)
    noisy = [key for key in type(config).model_fields if "dropout" in key]
    changes: dict[str, object] = dict.fromkeys(noisy, 0.0)
    if "pool_size" in type(config).model_fields:
        changes["pool_size"] = 0
    model = build_model(config.model_copy(update=changes))
    norms = (torch.nn.modules.batchnorm._BatchNorm,)
    return None if any(isinstance(m, norms) for m in model.modules()) else model


def step_all(rank: int, world: int, out: Path) -> None:
    """Take four steps with every model; write the metrics of each step and the final state."""
    for name in model_names():
        if (model := plain(name)) is None:
            continue
        model.prepare(small_batch(model.config, 8))
        section = TrainSection(images=16, batch_size=4)
        step = TrainingStep(model, model.phases(), section, rank, world)
        metrics = []
        for number in range(4):
            whole = small_batch(model.config, 4, first=4 * number)
            values = step(share(whole, rank, world), number, number / 4)
            metrics.append(average_metrics(values, world))
        torch.save((metrics, dict(model.state_dict())), out / f"{name}-step-{rank}.pt")


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The share of a batch that the stream gives to one of ``world`` workers."""
    return batch._each(lambda tensor: tensor[rank::world])


def run_worker(rank: int, out: Path) -> None:
    train_all(rank, WORLD_SIZE, out)
    step_all(rank, WORLD_SIZE, out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one worker in "one" and of two in "two"."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    on_two_ranks(run_worker, folder / "two")
    train_all(0, 1, folder / "one")
    step_all(0, 1, folder / "one")
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_two_workers_take_the_same_steps_as_one_with_the_same_global_batch(
    name: str, trained: Path
) -> None:
    one, two = (
        [values for _, values in json.loads((trained / world / f"{name}-0.json").read_text())]
        for world in ("one", "two")
    )
    assert len(one) > 4
    for a, b in zip(one, two, strict=True):
        assert without_clock(b) == pytest.approx(without_clock(a), rel=1e-5)
    weights = [torch.load(trained / world / f"{name}-0.pt")[0] for world in ("one", "two")]
    moved = max(
        (weights[0][k] - weights[1][k]).abs().max().item()
        for k in weights[0]
        if k.endswith("weight")
    )
    assert moved < 1e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_only_rank_0_logs_and_saves(name: str, trained: Path) -> None:
    assert json.loads((trained / "two" / f"{name}-1.json").read_text()) == []
    assert torch.load(trained / "two" / f"{name}-1.pt") == []


@pytest.mark.parametrize("name", model_names())
def test_every_model_takes_the_same_steps_on_two_workers_as_on_one(
    name: str, trained: Path
) -> None:
    if (model := plain(name)) is None:
        pytest.skip("batch statistics depend on the number of workers")
    one, two, other = (
        torch.load(trained / world / f"{name}-step-{rank}.pt")
        for world, rank in (("one", 0), ("two", 0), ("two", 1))
    )
    for a, b in zip(one[0], two[0], strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-6)
    assert one[1].keys() == two[1].keys()
    # The gradient of a bias before a normalisation is rounding, which Adam scales to full steps.
    normed = any(isinstance(m, torch.nn.InstanceNorm2d) for m in model.modules())
    for key, value in one[1].items():
        if normed and key.endswith("bias"):
            continue
        torch.testing.assert_close(two[1][key], value, rtol=1e-5, atol=1e-5, msg=key)
        assert torch.equal(two[1][key], other[1][key]), f"{key} differs between ranks"
