"""The training loop: restore, step, log, validate, sample, save, stop."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from models.base import Batch, build_model
from orchestrator.errors import Diverged, EnvironmentProblem
from orchestrator.job import Job
from orchestrator.randomness import seed_of
from orchestrator.training.agreement import StopAgreement
from orchestrator.training.evaluate import pictures, validate
from orchestrator.training.rehearsal import rehearse
from orchestrator.training.state import (
    Ema,
    TrainState,
    is_own,
    optimizer_settings,
    optimizer_tensors,
    own_of_all_ranks,
    restore_optimizers,
)
from orchestrator.training.step import TrainingStep, average_metrics, broadcast_buffers
from orchestrator.training.watch import DataWatch
from orchestrator.training.worker import STEP, Stream, Worker

NUM_EXAMPLES = 8
POINTS_PER_EPOCH = 100


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    images_seen: int
    finished: bool
    """False when the worker was told to stop before the end."""
    metrics: Mapping[str, float]
    """The last validation's."""


def train(job: Job, stream: Stream, worker: Worker) -> Outcome:
    """Train until the job's images are seen or a worker is told to stop; every rank calls it.

    What was saved is committed when this returns.

    All randomness of a step is a function of the seed, the step and the rank, and the order of
    the images one of the seed alone: a training that goes on from a checkpoint takes the very
    steps that an uninterrupted one would have taken.

    Raises:
        Diverged: a loss is no longer finite.
        UsageError: the model cannot be trained like this; see rehearsal.py.
        DataError: the data set is damaged.
    """
    settings, epoch = job.train, stream.num_samples
    total = settings.total_images(epoch)
    log_every = settings.log_every or max(1, epoch // POINTS_PER_EPOCH)
    run = _Run(job, stream, worker)
    run.restore()
    rehearse(run.model, run.phases, run.examples, job.images_per_pass, worker)
    with closing(stream.training(run.images_seen)) as batches, StopAgreement(worker) as stopping:
        while run.images_seen < total:
            stopping.ask()
            before, metrics = run.images_seen, run.step(batches, total)
            ending = run.images_seen >= total

            def due(every: int, before: int = before, ending: bool = ending) -> bool:
                return ending or before // every != run.images_seen // every

            if due(log_every):
                run.log(metrics)
            if stopping.answer():  # whoever stops us may not wait for more
                run.save()
                break
            if due(settings.validate_every or epoch):
                run.validate()
            if due(settings.sample_every or epoch):
                run.draw_samples()
            if due(settings.checkpoint_every or epoch):
                run.save()
    run.flush()
    finished = run.images_seen >= total
    if finished and not run.validation:
        run.validate()  # it was restored after the last step
    return Outcome(run.images_seen, finished, run.validation)


class _Run:
    """A model in training, and what is done with it at intervals."""

    def __init__(self, job: Job, stream: Stream, worker: Worker) -> None:
        self.job, self.stream, self.worker = job, stream, worker
        self.images_seen = 0
        self.validation: Mapping[str, float] = {}
        torch.manual_seed(seed_of("weights", job.train.seed))
        self.model = build_model(job.model).to(worker.device)
        self.examples = stream.examples(NUM_EXAMPLES).to(worker.device)
        if self.model.images_to_prepare:
            images = stream.examples(self.model.images_to_prepare)
            self.model.prepare(images.to(worker.device))
        self.phases = self.model.phases()
        self.training_step = TrainingStep(
            self.model, self.phases, job.train, worker.rank, worker.world_size
        )
        decay = job.train.ema_decay
        self.ema = Ema(self.model.inference_module(), decay) if decay is not None else None
        self.meter = _Meter()
        self.watch = DataWatch(stream, worker, job.data.threads)

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.worker.doing("restoring")
        state = self.worker.checkpoints.latest()
        if not same_on_all_ranks(state.images_seen if state else 0, self.worker):
            raise EnvironmentProblem(
                "the workers see different checkpoints; give them one storage that all can read"
            )
        if state is None:
            return
        self.model.load_state_dict({**state.networks, **state.own_of(self.worker.rank)})
        restore_optimizers(self.phases, state.optimizers, state.settings)
        if self.ema is not None:
            self.ema.load(state.snapshot)
        self.images_seen = state.images_seen

    def step(self, batches: Iterator[Batch], total: int) -> dict[str, Tensor]:
        """Train by the next batch; this worker's metrics, still on the device."""
        self.worker.doing("waiting for data")
        with self.meter.waiting():
            batch = next(batches).to(self.worker.device)
        self.worker.doing(STEP)
        size = self.job.train.batch_size
        metrics = self.training_step(
            batch, step=self.images_seen // size, progress=self.images_seen / total
        )
        if self.ema is not None:
            self.ema.update()
        self.images_seen += size
        self.meter.images += size
        return metrics

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Record the last step's metrics, means over ranks, and the speed since the last log."""
        values = average_metrics(metrics, self.worker.world_size)
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise Diverged(
                f"{', '.join(bad)} no longer finite after {self.images_seen} images; "
                "a lower model.learning_rate or train.max_grad_norm: 1 often helps"
            )
        images, elapsed_s, waited_s = self.meter.lap()
        rate = {"images_per_s": images / elapsed_s}
        data = self.watch.metrics(elapsed_s, waited_s, self.images_seen)
        epoch = {"epoch": self.images_seen / self.stream.num_samples}
        self._record({**values, **rate, **data, **epoch})

    def validate(self) -> None:
        """Measure the model on the validation set; every rank does its share."""
        self.worker.doing("validating")
        with self._inference_weights(), self.meter.paused():
            self.validation = validate(self.model, self.stream.validation(), self.job, self.worker)
        if self.validation:
            self._record(self.validation)

    def draw_samples(self) -> None:
        """Record the grid of samples and the model's other pictures; rank 0 draws them."""
        self.worker.doing("drawing samples")
        with self._inference_weights(), self.meter.paused():
            if self.worker.rank == 0:
                for name, rows in pictures(self.model, self.examples, self.job).items():
                    self.worker.recorder.grid(name, rows, self.images_seen)

    def save(self) -> None:
        """Keep the state; rank 0 writes it. Weights that are not finite are never kept."""
        self.worker.doing("saving")
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise Diverged(f"{name} is no longer finite after {self.images_seen} images")
        if self.worker.world_size > 1:
            broadcast_buffers(self.model)
        own = own_of_all_ranks(self.model, self.worker.world_size)
        if self.worker.rank == 0:
            networks = self.model.state_dict()
            module = self.model.inference_module()
            with self.meter.paused():
                self.worker.checkpoints.save(
                    TrainState(
                        self.images_seen,
                        networks={k: v for k, v in networks.items() if not is_own(self.model, k)},
                        snapshot=self.ema.average if self.ema else module.state_dict(),
                        optimizers=optimizer_tensors(self.phases),
                        settings=optimizer_settings(self.phases),
                        own=own,
                    )
                )

    def flush(self) -> None:
        """Wait until what was saved is committed."""
        self.worker.doing("writing the checkpoint")
        if self.worker.rank == 0:
            self.worker.checkpoints.flush()

    def _record(self, values: Mapping[str, float]) -> None:
        if self.worker.rank == 0:
            self.worker.recorder.metrics(values, self.images_seen)

    @contextmanager
    def _inference_weights(self) -> Iterator[None]:
        """The model as it will be used: with rank 0's buffers and the averaged weights."""
        if self.worker.world_size > 1:
            broadcast_buffers(self.model)
        if self.ema is None:
            yield
            return
        self.ema.swap()
        try:
            yield
        finally:
            self.ema.swap()


def same_on_all_ranks(value: int, worker: Worker) -> bool:
    """Whether every rank calls this with the same ``value``."""
    if worker.world_size == 1:
        return True
    extremes = torch.tensor([value, -value], device=worker.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return bool(extremes.sum() == 0)


class _Meter:
    """Images, time and waiting for data since the last log."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start counting now."""
        self.images = 0
        self._waited_s = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time inside: it is no training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def lap(self) -> tuple[int, float, float]:
        """Images over all workers, seconds, and seconds of waiting for data; starts anew."""
        elapsed_s = max(time.perf_counter() - self._start, 1e-9)
        lap = self.images, elapsed_s, self._waited_s
        self.restart()
        return lap
