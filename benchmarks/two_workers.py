"""Measure the cost of averaging gradients with the quickstart's step: one process, two, DDP.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/two_workers.py --seconds 8

Two unconnected processes are the upper bound of two workers on the same cores. Images are in
memory.
"""

import argparse
import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from orchestrator.config.load import load_job
from orchestrator.models.base import Batch, build_model
from orchestrator.training.step import TrainingStep

JOB = Path(__file__).parent.parent / "jobs/quickstart.yaml"


def train(rank: int, world_size: int, port: int, images: int, seconds: float) -> None:
    """Train for ``seconds`` with ``images`` per step; DDP connects the processes if ``port``."""
    torch.set_num_threads(1)
    if port:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    job = load_job(JOB, environ=os.environ).job
    model = build_model(job.model)
    step = TrainingStep(model, model.phases(), job.train, rank, world_size if port else 1)
    shape = (images, 3, job.model.image_size, job.model.image_size)
    pair = [torch.rand(shape) * 2 - 1 for _ in range(2)]
    batch = Batch(pair[0], torch.arange(images), pair[1])
    for _ in range(3):
        step(batch, 0, 0.0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step(batch, steps, 0.0)
        steps += 1
    elapsed = time.perf_counter() - start
    if rank == 0:
        rate, each = steps * images * world_size / elapsed, 1000 * elapsed / steps
        print(f"{rate:6.1f} images/s  {each:4.0f} ms per step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    seconds = parser.parse_args().seconds
    for world_size, connected, images in ((1, 0, 4), (2, 0, 4), (2, 1, 4), (2, 1, 8)):
        how = "with DDP" if connected else "unconnected"
        print(f"{world_size} processes {how}, {images} images each:", end=" ", flush=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1] * connected
        spawn(train, (world_size, port, images, seconds), nprocs=world_size)


if __name__ == "__main__":
    main()
