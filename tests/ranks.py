"""Runs a function as two gloo ranks, each a process of its own."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD_SIZE = 2


def on_two_ranks(function: Callable[[int, Path], None], out: Path) -> None:
    """Call ``function(rank, out)`` on both ranks with a process group, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, function, out), nprocs=WORLD_SIZE)


def _rank(rank: int, port: int, function: Callable[[int, Path], None], out: Path) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD_SIZE)
    function(rank, out)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # The usual end aborts about once in ten times where one rank is seconds behind the other:
    # "terminate called without an active exception", from a thread of gloo's.
    os._exit(0)
