"""Two processes with gloo against one process with the same global batch."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import ListRecorder, MemoryCheckpoints, MemoryStream, small_job

from orchestrator.training.loop import train
from orchestrator.training.worker import Worker


def run_worker(rank: int, world: int, port: int, options: dict[str, object], out: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    recorder, checkpoints = ListRecorder(), MemoryCheckpoints()
    worker = Worker(recorder, checkpoints, torch.device("cpu"), rank, world)
    job = small_job({"dropout": 0.0}, images=16, log_every=4, checkpoint_every=4, **options)
    train(job, MemoryStream(rank=rank, world=world), worker)
    Path(out, f"points-{rank}.json").write_text(json.dumps(recorder.points))
    torch.save([s.networks for s in checkpoints.states], Path(out, f"networks-{rank}.pt"))
    if world > 1:
        dist.destroy_process_group()


def points_of(world: int, options: dict[str, object], out: Path) -> list[dict[str, float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out.mkdir()
    mp.spawn(run_worker, (world, port, options, str(out)), nprocs=world)
    return [values for _, values in json.loads((out / "points-0.json").read_text())]


@pytest.mark.parametrize(
    "options",
    [{}, {"microbatch_size": 1}, {"max_grad_norm": 0.5}, {"ema_decay": 0.9}],
    ids=["plain", "microbatches", "clipped", "ema"],
)
def test_two_workers_take_the_steps_of_one_with_the_same_global_batch(
    options: dict[str, object], tmp_path: Path
) -> None:
    one = points_of(1, options, tmp_path / "one")
    two = points_of(2, options, tmp_path / "two")
    clock = {"images_per_s", "data_wait_share"}
    assert [p.keys() for p in one] == [p.keys() for p in two]
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in b.items() if k not in clock} == pytest.approx(
            {k: v for k, v in a.items() if k not in clock}, rel=1e-5
        )
    assert json.loads((tmp_path / "two" / "points-1.json").read_text()) == []
    weights = [torch.load(tmp_path / world / "networks-0.pt")[0] for world in ("one", "two")]
    moved = max(
        (weights[0][k] - weights[1][k]).abs().max().item()
        for k in weights[0]
        if k.endswith("weight")
    )
    assert moved < 1e-5
