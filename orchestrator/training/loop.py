"""The training loop: restore, step, log, validate, sample, save, stop."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.errors import Diverged, EnvironmentProblem
from orchestrator.models.base import Batch, GenerativeModel, build_model
from orchestrator.seeding import seed_of
from orchestrator.training.collapse import CollapseGuard
from orchestrator.training.data_monitor import DataWatch
from orchestrator.training.divergence import Astray, Guard, Verdict
from orchestrator.training.evaluate import look, validate
from orchestrator.training.interfaces import DATA, STEP, Stream, Worker
from orchestrator.training.nonfinite import anywhere, first_not_finite
from orchestrator.training.preflight import rehearse
from orchestrator.training.profiler import StepTimes
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
from orchestrator.training.stop_consensus import StopAgreement
from orchestrator.training.throughput import Meter

NUM_EXAMPLES = 8
POINTS_PER_EPOCH = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    images_seen: int
    finished: bool
    """False when the worker was told to stop before the end."""
    metrics: Mapping[str, float]
    """The last validation's."""
    times: tuple[tuple[StepTimes, ...], ...] = ()
    """Of each rank the steps, where they were timed."""


def train(job: Job, stream: Stream, worker: Worker) -> Outcome:
    """Train until the job's images are seen or a worker is told to stop; every rank calls it.

    What was saved is committed when this returns.

    All randomness of a step is a function of the seed, the step and the rank, and the order of
    the images one of the seed alone: a training that goes on from a checkpoint takes the very
    steps that an uninterrupted one would have taken.

    Raises:
        Diverged: gradients are no longer finite, and nothing that the guard may do has helped.
        UsageError: the model cannot be trained like this; see rehearsal.py.
        DataError: the data set is damaged.
    """
    total = job.train.total_images(stream.num_samples)
    run = _Run(job, stream, worker)
    run.restore()
    rehearse(run.model, run.phases, run.examples, job.images_per_pass, worker)
    with StopAgreement(worker) as stopping:
        while True:
            try:
                _go_on(run, total, stopping)
                break
            except Astray as astray:
                run.go_back(astray.verdict)
    run.flush()
    finished = run.images_seen >= total
    if finished and not run.validation:
        run.validate()  # it was restored after the last step
    return Outcome(run.images_seen, finished, run.validation)


def _go_on(run: "_Run", total: int, stopping: StopAgreement) -> None:
    """Train from where ``run`` is, to the end or until a worker is told to stop."""
    settings, epoch = run.job.train, run.stream.num_samples
    log_every = settings.log_every or max(1, epoch // POINTS_PER_EPOCH)
    owed = False

    def due(every: int | None) -> bool:
        every, now = every or epoch, run.images_seen
        return now >= total or (now - settings.batch_size) // every != now // every

    def look() -> None:
        if due(settings.validate_every):
            run.validate()
        if due(settings.sample_every):
            run.draw_samples()

    if run.owing:
        look()
    with closing(run.stream.training(run.images_seen)) as batches:
        while run.images_seen < total:
            stopping.ask()
            metrics = run.step(batches, total)
            if due(log_every):
                run.log(metrics)
            if stopping.answer():  # whoever stops us may not wait for more
                run.save(owing=True)
                if run.images_seen >= total:
                    look()  # the training is at its end, and nothing goes on with it
                break
            look()
            owed = owed or due(settings.checkpoint_every)
            if owed and (run.images_seen >= total or not run.guard.in_doubt):
                run.save()
                owed = False


class _Run:
    """A model in training, and what is done with it at intervals."""

    def __init__(self, job: Job, stream: Stream, worker: Worker) -> None:
        self.job, self.stream, self.worker = job, stream, worker
        self.images_seen = 0
        self.owing = False
        """Whether what is to be looked at after the last step has not been."""
        self.validation: Mapping[str, float] = {}
        self.examples = stream.examples(NUM_EXAMPLES).to(worker.device)
        self.model = self._fresh_model()
        self.phases = self.model.phases()
        self.guard = Guard(job.guard)
        self.training_step = TrainingStep(
            self.model, self.phases, job.train, worker.rank, worker.world_size, self.guard
        )
        for wrapped in self.training_step.averaging:
            worker.averages(wrapped)
        self._first_settings = optimizer_settings(self.phases)
        self.collapse = CollapseGuard(job.guard, self.model, stream, worker)
        decay = job.train.ema_decay
        self.ema = Ema(self.model.inference_module(), decay) if decay is not None else None
        self.meter = Meter()
        self.watch = DataWatch(stream, worker, job.data.threads)

    def _fresh_model(self) -> GenerativeModel:
        """The model before its first step, the same each time."""
        torch.manual_seed(seed_of("weights", self.job.train.seed))
        model = build_model(self.job.model).to(self.worker.device)
        if model.images_to_prepare:
            images = self.stream.examples(model.images_to_prepare)
            model.prepare(images.to(self.worker.device))
        return model

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.worker.doing("restoring")
        state = self._newest()
        if state is not None:
            self._load(state)
            self.guard.load(state.guard.get("updates", {}))

    def go_back(self, verdict: Verdict) -> None:
        """Go on from the newest checkpoint, or from the start, with a lower learning rate.

        Raises:
            Diverged: it was done too often; all ranks agree on that.
        """
        what = f"{verdict.reason}, after {self.images_seen:,} images"
        if verdict.action == "stop":
            raise Diverged(f"{what}; {self.guard.what_was_tried()}")
        state = self._newest() or self._beginning()
        self._load(state)
        self.guard.went_back(state.guard.get("updates", {}))
        self.validation = {}
        self.meter.restart()
        if self.worker.rank == 0:
            logger.warning(
                "%s; back to %s images with %g of the learning rate",
                what, f"{self.images_seen:,}", self.guard.learning_rate_factor,
            )  # fmt: skip

    def _newest(self) -> TrainState | None:
        """The newest checkpoint, which must be the same for all ranks."""
        self.flush()
        if self.worker.world_size > 1:
            dist.barrier()  # rank 0 may still have been writing it
        state = self.worker.checkpoints.latest()
        if not same_on_all_ranks(state.images_seen if state else 0, self.worker):
            raise EnvironmentProblem(
                "the workers see different checkpoints; give them one storage that all can read"
            )
        return state

    def _beginning(self) -> TrainState:
        """The state before the first step."""
        model = self._fresh_model()
        networks, snapshot = model.state_dict(), model.inference_module().state_dict()
        return TrainState(0, networks, snapshot, optimizers={}, settings=self._first_settings)

    def _load(self, state: TrainState) -> None:
        self.model.load_state_dict({**state.networks, **state.own_of(self.worker.rank)})
        restore_optimizers(self.phases, state.optimizers, state.settings)
        if self.ema is not None:
            self.ema.load(state.snapshot)
        self.collapse.load(state.guard.get("collapse", {}))
        if self.worker.rank == 0:
            self.worker.recorder.load(state.recorder)
        self.images_seen, self.owing = state.images_seen, state.owing

    def step(self, batches: Iterator[Batch], total: int) -> dict[str, Tensor]:
        """Train by the next batch; this worker's metrics, still on the device."""
        self.worker.doing(DATA)
        with self.meter.waiting():
            batch = next(batches).to(self.worker.device)
        self.worker.doing(STEP)
        size = self.job.train.batch_size
        metrics = self.training_step(
            batch, step=self.images_seen // size, progress=self.images_seen / total
        )
        if self.ema is not None:
            self.ema.update()
        self.images_seen, self.owing = self.images_seen + size, False
        self.meter.images += size
        return metrics

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Record the last step's metrics, means over ranks, and the speed since the last log."""
        values = average_metrics(metrics, self.worker.world_size)
        left_out = self.training_step.left_out
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        unguarded = [name for name in broken if name.partition("/")[0] not in left_out]
        if unguarded:
            raise Astray(self.guard.astray(f"{', '.join(unguarded)} no longer finite"))
        values = {name: value for name, value in values.items() if name not in broken}
        images, elapsed_s, waited_s = self.meter.lap()
        rate = {"images_per_s": images / elapsed_s}
        data = self.watch.metrics(elapsed_s, waited_s, self.images_seen)
        epoch = {"epoch": self.images_seen / self.stream.num_samples}
        values |= {**rate, **data, **epoch, **self.guard.metrics()}
        self.collapse.record(values, self.images_seen)

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
            drawn = look(self.model, self.examples, self.job) if self.worker.rank == 0 else None
            for name, rows in drawn.pictures.items() if drawn else ():
                self.worker.recorder.grid(name, rows, self.images_seen)
            self.collapse.measure(drawn.samples if drawn else None, self.images_seen)

    def save(self, *, owing: bool = False) -> None:
        """Keep the state; rank 0 writes it while the training goes on.

        Args:
            owing: whether the looking that is due now has not been done.

        Raises:
            Astray: a tensor is not finite on one of the ranks; such a state is never kept.
        """
        self.worker.doing("saving")
        tensors = {**self.model.state_dict(), **optimizer_tensors(self.phases)}
        averages = self.ema.average if self.ema else {}
        tensors |= {f"the average of {name}": value for name, value in averages.items()}
        found = first_not_finite(tensors)
        found = anywhere(found, self.worker.device, self.worker.world_size)
        if found is not None:
            raise Astray(self.guard.astray(f"{found} no longer finite"))
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
                        guard={"updates": self.guard.state(), "collapse": self.collapse.state()},
                        owing=owing,
                        recorder=self.worker.recorder.state(),
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
        """The model as it will be used: with the averaged weights, and rank 0's buffers."""
        if self.ema is not None:
            self.ema.swap()
        try:
            if self.worker.world_size > 1:
                broadcast_buffers(self.model)
            yield
        finally:
            if self.ema is not None:
                self.ema.swap()


def same_on_all_ranks(value: int, worker: Worker) -> bool:
    """Whether every rank calls this with the same ``value``."""
    if worker.world_size == 1:
        return True
    extremes = torch.tensor([value, -value], device=worker.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return bool(extremes.sum() == 0)
