"""Short trainings of a job on local processes, interrupted where one wants, with all they left."""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.data.loading.stream import ShardStream
from orchestrator.diagnostics.compare_runs import Evidence, of_the_clock
from orchestrator.models.base import Batch
from orchestrator.runs.async_checkpoints import UploadedCheckpoints
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from orchestrator.training.interfaces import NullRecorder, Stream, Worker
from orchestrator.training.loop import train


@dataclass(frozen=True)
class Interruption:
    """An end before the end."""

    at: int
    """Images after which it comes."""
    lost: bool
    """Whether all processes are lost at once; otherwise they are told to stop, and save."""


@dataclass(frozen=True)
class Trial:
    """A job on ``world_size`` processes of this machine, which leave what they did in a folder."""

    job: Job = field(repr=False)
    folder: Path
    world_size: int = 1

    def run(self, interruption: Interruption | None = None) -> None:
        """Train from the newest checkpoint in the folder to the end, or to the interruption."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.world_size == 1:
            train_as(self, 0, interruption)
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_rank, (self, port, interruption), nprocs=self.world_size)

    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the folder."""
        return Checkpoints(open_storage(str(self.folder)), "checkpoints", self.job.name)

    def evidence(self) -> Evidence:
        """All that the trainings in the folder left."""
        state = self.checkpoints().latest()
        assert state is not None, "a training ends with a checkpoint"
        points, samples = _Once(), _Once()
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                kind, name, value = json.loads(line)
                (points if kind == "point" else samples).add(name, value)
        again = (*points.contradictions, *samples.contradictions)
        return Evidence(state, points.values, samples.values, samples.num_again, again)


class _Once:
    """Values by name; what comes a second time must be the same."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.contradictions: list[str] = []
        self.num_again = 0

    def add(self, name: str, value: Any) -> None:
        self.num_again += name in self.values
        before = self.values.setdefault(name, value)
        if before != value and before == before:  # noqa: PLR0124 - NaN is not itself
            self.contradictions.append(f"{name}: {before}, and when trained again {value}")


class _Lost(Exception):
    """Ends a training in the middle, as if its process were lost."""


def _rank(rank: int, trial: Trial, port: int, interruption: Interruption | None) -> None:
    gpu = bool(trial.job.cluster.gpus_per_worker)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // trial.world_size))
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=trial.world_size,
    )
    train_as(trial, rank, interruption)
    sys.stdout.flush()
    sys.stderr.flush()
    # The usual end aborts now and then where one rank is seconds behind the other, in gloo.
    os._exit(0)


def train_as(trial: Trial, rank: int, interruption: Interruption | None) -> None:
    """``Trial.run`` as one rank of it; with several, the process group must exist."""
    job, log = trial.job, _Log(trial.folder / f"{rank}.jsonl")
    gpu = bool(job.cluster.gpus_per_worker)
    if gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = torch.device(f"cuda:{rank}" if gpu else "cpu")
    shares = ShardStream(job, rank, trial.world_size)
    stream = _LoggedStream(shares, job.train.batch_size, rank, log, interruption)
    checkpoints = UploadedCheckpoints(trial.checkpoints(), job.data.retry_timeout_s)
    worker = Worker(
        _LoggedPoints(log) if rank == 0 else NullRecorder(),
        checkpoints,
        device,
        rank,
        trial.world_size,
        stream.should_stop,
    )
    with suppress(_Lost):  # every rank ends at the same batch, without a word to the others
        train(job, stream, worker)
    if rank == 0:
        checkpoints.flush()  # the same checkpoint is there each time


class _Log:
    """Lines in a file, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def add(self, kind: str, name: str, value: Any) -> None:
        self._file.write(json.dumps([kind, name, value]).encode() + b"\n")


class _LoggedPoints(NullRecorder):
    def __init__(self, log: _Log) -> None:
        self._log = log

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            if not of_the_clock(name):
                self._log.add("point", f"{name} at {images_seen}", value)


class _LoggedStream:
    """A stream that writes down what it gives, and interrupts the training."""

    def __init__(
        self, stream: Stream, size: int, rank: int, log: _Log, interruption: Interruption | None
    ) -> None:
        self._stream, self._size, self._rank, self._log = stream, size, rank, log
        self._interruption, self._seen = interruption, 0
        self.num_samples = stream.num_samples

    def should_stop(self) -> bool:
        end = self._interruption
        return end is not None and not end.lost and self._seen >= end.at

    def training(self, start: int) -> Generator[Batch, None, None]:
        self._seen, end = start, self._interruption
        batches = self._stream.training(start)
        try:
            for batch in batches:
                if end is not None and end.lost and self._seen >= end.at:
                    raise _Lost
                self._log.add("sample", f"{self._seen} on rank {self._rank}", _digest(batch))
                self._seen += self._size
                yield batch
        finally:
            batches.close()

    def validation(self) -> Iterator[Batch]:
        return self._stream.validation()

    def examples(self, count: int) -> Batch:
        return self._stream.examples(count)

    def counts(self) -> Mapping[str, float]:
        return self._stream.counts()

    def corrupt_samples(self) -> Sequence[str]:
        return self._stream.corrupt_samples()


def _digest(batch: Batch) -> str:
    """Of the positions, the pixels and whatever else a share holds."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in (batch.positions, batch.images, batch.condition, batch.labels, batch.captions):
        if isinstance(tensor, Tensor):
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
