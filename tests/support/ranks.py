"""Runs a function as several gloo ranks, each in its own process."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD_SIZE = 2
PRELOAD = ["torch._dynamo", "mlflow", "orchestrator.runs.driver"]
"""Imported once for all ranks: it takes 8 s of CPU; the first optimizer imports torch._dynamo."""


def on_two_ranks(function: Callable[[int, Path], None], out: Path) -> None:
    """Call ``function(rank, out)`` on both ranks with a process group, and wait for them."""
    on_ranks(function, out, WORLD_SIZE)


def on_ranks(function: Callable[[int, Path], None], out: Path, world_size: int) -> None:
    """Call ``function(rank, out)`` on each rank with a process group, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The ranks are forked from a process that has only imported modules.
    multiprocessing.set_forkserver_preload(PRELOAD)
    arguments = (world_size, port, function, out, dict(os.environ))
    mp.start_processes(_rank, arguments, world_size, start_method="forkserver")  # type: ignore[attr-defined,no-untyped-call]


def _rank(
    rank: int,
    world_size: int,
    port: int,
    function: Callable[[int, Path], None],
    out: Path,
    environ: Mapping[str, str],
) -> None:
    os.environ.clear()  # the fork server has that of the first call
    os.environ.update(environ)
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    function(rank, out)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit aborts about once in ten times if one rank is seconds behind the other:
    # "terminate called without an active exception", from a gloo thread.
    os._exit(0)
