"""Short runs of a job on local processes, with an interruption and a log of all they did."""

import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.config.job import Job
from orchestrator.data.loading.stream import ShardStream
from orchestrator.diagnostics.compare_runs import RunArtifacts, is_timing_metric
from orchestrator.errors import OrchestratorError
from orchestrator.models.base import Batch
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from orchestrator.training.instrumentation import tensor_bytes
from orchestrator.training.interfaces import NullRecorder, Worker
from orchestrator.training.loop import train


@dataclass(frozen=True)
class Interruption:
    """Early end of a run."""

    after_images: int
    killed: bool
    """Whether all processes end at once without saving; otherwise they stop and save."""


@dataclass(frozen=True)
class LocalRun:
    """A job on ``world_size`` processes of this machine, with checkpoints and logs in a folder."""

    job: Job = field(repr=False)
    folder: Path
    world_size: int = 1

    def run(self, interruption: Interruption | None = None) -> None:
        """Train from the newest checkpoint in the folder to the end, or to the interruption.

        Raises:
            OrchestratorError: the first one of any rank.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.world_size == 1:
            train_rank(self, 0, interruption)
            return
        spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        errors: SimpleQueue[OrchestratorError] = get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            # A file, because torch's store of the network listens on all addresses.
            arguments = (self, f"file://{folder}/store", interruption, errors)
            try:
                spawn(_run_rank, arguments, nprocs=self.world_size)
            except Exception:
                # It has only the traceback; another rank may have failed as a consequence.
                if errors.empty():
                    raise
                raise errors.get() from None

    def checkpoints(self) -> Checkpoints:
        """Checkpoints in the folder."""
        return Checkpoints(open_storage(str(self.folder)), "checkpoints", self.job.name)

    def artifacts(self) -> RunArtifacts:
        """Read the final state and the logs of all runs in the folder."""
        state = self.checkpoints().latest()
        assert state is not None, "a run ends with a checkpoint"
        points, samples = _UniqueValues(), _UniqueValues()
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                kind, name, value = json.loads(line)
                (points if kind == "point" else samples).add(name, value)
        mismatches = (*points.mismatches, *samples.mismatches)
        return RunArtifacts(state, points.values, samples.values, samples.num_repeated, mismatches)


@dataclass
class _UniqueValues:
    """Values by name; a repeated value must equal the first."""

    values: dict[str, Any] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)
    num_repeated: int = 0

    def add(self, name: str, value: Any) -> None:
        self.num_repeated += name in self.values
        before = self.values.setdefault(name, value)
        if before != value and before == before:  # noqa: PLR0124 - NaN is not itself
            self.mismatches.append(f"{name}: {before}, then {value} when repeated")


class _Killed(Exception):
    """Ends a run in the middle, as if its process were killed."""


def _run_rank(
    rank: int,
    run: LocalRun,
    store: str,
    interruption: Interruption | None,
    errors: "SimpleQueue[OrchestratorError]",
) -> None:
    gpu = bool(run.job.cluster.gpus)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // run.world_size))
    for name in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store, rank=rank, world_size=run.world_size)
    try:
        train_rank(run, rank, interruption)
    except OrchestratorError as error:
        errors.put(error)
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit sometimes aborts in gloo, where one rank is seconds behind the other.
    os._exit(0)


def train_rank(run: LocalRun, rank: int, interruption: Interruption | None) -> None:
    """Train one rank of ``run``; with several ranks the process group must exist."""
    job, log = run.job, _EventLog(run.folder / f"{rank}.jsonl")
    gpu = bool(job.cluster.gpus)
    if gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = torch.device(f"cuda:{rank}" if gpu else "cpu")
    stream = _LoggedStream(run, rank, log, interruption)
    checkpoints = AsyncCheckpointStore(run.checkpoints(), job.data.retry_timeout_s)
    recorder = _LoggedMetrics(log) if rank == 0 else NullRecorder()
    worker = Worker(recorder, checkpoints, device, rank, run.world_size, stream.should_stop)
    with suppress(_Killed):  # every rank ends at the same batch and tells no other
        train(job, stream, worker)
    if rank == 0:
        checkpoints.flush()  # so that every repetition has the same newest checkpoint


class _EventLog:
    """File of JSON lines, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def add(self, kind: str, name: str, value: Any) -> None:
        self._file.write(json.dumps([kind, name, value]).encode() + b"\n")


@dataclass(frozen=True)
class _LoggedMetrics(NullRecorder):
    log: _EventLog

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            if not is_timing_metric(name):
                self.log.add("point", f"{name} at {images_seen}", value)


class _LoggedStream(ShardStream):
    """Stream that logs the batches it yields, and interrupts the run."""

    def __init__(
        self, run: LocalRun, rank: int, log: _EventLog, interruption: Interruption | None
    ) -> None:
        super().__init__(run.job, rank, run.world_size)
        self._log, self._interruption, self._images_seen = log, interruption, 0

    def should_stop(self) -> bool:
        return self._is_due(killed=False)

    def _is_due(self, *, killed: bool) -> bool:
        end = self._interruption
        return end is not None and end.killed == killed and self._images_seen >= end.after_images

    def training(self, start: int) -> Generator[Batch, None, None]:
        self._images_seen = start
        with closing(super().training(start)) as batches:
            for batch in batches:
                if self._is_due(killed=True):
                    raise _Killed
                name = f"{self._images_seen} on rank {self._rank}"
                self._log.add("sample", name, _digest(batch))
                self._images_seen += self._job.train.batch_size
                yield batch


def _digest(batch: Batch) -> str:
    """Hash the positions, the pixels and whatever else a share of a batch holds."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (batch.positions, batch.images, batch.condition, batch.labels, batch.captions):
        if tensor is not None:
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
