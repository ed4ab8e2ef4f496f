"""A model in training, with the operations that the loop performs on it at intervals."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.errors import Collapsed, Diverged, EnvironmentProblem
from orchestrator.models.base import Batch, GenerativeModel, build_model
from orchestrator.seeding import seed_of
from orchestrator.training.best_checkpoint import BestCheckpoint
from orchestrator.training.collapse import (
    COLLAPSED,
    DIVERSITY,
    CollapseDetector,
    SampleDiversity,
    default_grace_images,
)
from orchestrator.training.data_monitor import DataMonitor
from orchestrator.training.divergence import DivergenceGuard, RollbackRequired, UpdateDecision
from orchestrator.training.ema import Ema
from orchestrator.training.evaluate import Validation, draw_grids, validate
from orchestrator.training.interfaces import DATA, STEP, Stateful, Stream, Worker
from orchestrator.training.nonfinite import any_rank, first_not_finite
from orchestrator.training.state import (
    BEST_CHECKPOINT,
    COLLAPSE_DETECTOR,
    DIVERGENCE_GUARD,
    TrainState,
    gather_per_rank_buffers,
    is_per_rank,
    optimizer_settings,
    optimizer_tensors,
    restore_optimizers,
)
from orchestrator.training.step import TrainingStep, average_metrics, broadcast_buffers
from orchestrator.training.throughput import ThroughputMeter

NUM_EXAMPLES = 8

logger = logging.getLogger(__name__)


class Trainer:
    """A model in training; every rank makes each call."""

    def __init__(self, job: Job, stream: Stream, worker: Worker) -> None:
        self.job, self.stream, self.worker = job, stream, worker
        self.total_images = job.train.total_images(stream.num_samples)
        self.images_seen = 0
        self.eval_pending = False
        """Whether the evaluation that was due after the last step is still to be done."""
        self.validation = Validation()
        """The last validation."""
        self.examples = stream.examples(NUM_EXAMPLES).to(worker.device)
        self.model = self._build_model()
        self.phases = self.model.phases()
        self.guard = DivergenceGuard(job.guard)
        self.training_step = TrainingStep(
            self.model, self.phases, job.train, worker.rank, worker.world_size, self.guard
        )
        for wrapped in self.training_step.ddp_modules:
            worker.on_ddp(wrapped)
        self._initial_settings = optimizer_settings(self.phases)
        decay = job.train.ema_decay
        self.ema = Ema(self.model.inference_module(), decay) if decay is not None else None
        self.throughput = ThroughputMeter()
        self.data_monitor = DataMonitor(stream, worker, job.data.threads)
        self.diversity = SampleDiversity(stream, worker)
        self.collapse = CollapseDetector(
            self.model.signs_of_collapse,
            job.guard.collapse_patience or stream.num_samples,
            job.guard.collapse_grace or default_grace_images(stream.num_samples, self.total_images),
        )
        self.best = BestCheckpoint(job.register_as.best if job.register_as else None)
        self.stateful: dict[str, Stateful] = {
            BEST_CHECKPOINT: self.best,
            DIVERGENCE_GUARD: self.guard,
            COLLAPSE_DETECTOR: self.collapse,
            **worker.stateful,
        }

    @property
    def is_finished(self) -> bool:
        """Whether all images of the job were seen."""
        return self.images_seen >= self.total_images

    def _build_model(self) -> GenerativeModel:
        """Build the model as it is before its first step, the same each time."""
        torch.manual_seed(seed_of("weights", self.job.train.seed))
        model = build_model(self.job.model).to(self.worker.device)
        if count := model.images_to_prepare:
            model.prepare(self.stream.examples(count).to(self.worker.device))
        return model

    def restore(self) -> None:
        """Resume from the newest checkpoint, if there is one."""
        self.worker.on_activity("restoring")
        if (state := self._latest_checkpoint()) is not None:
            self._load(state)

    def roll_back(self, decision: UpdateDecision) -> None:
        """Return to the newest checkpoint, or to the start, with a lower learning rate.

        Raises:
            Diverged: the decision is to stop; all ranks agree on that.
        """
        reason = f"{decision.reason}, after {self.images_seen:,} images"
        if decision.action == "stop":
            raise Diverged(f"{reason}; {self.guard.describe_attempts()}")
        before = self.guard.state_dict()
        self._load(self._latest_checkpoint() or self._initial_state())
        self.guard.rolled_back(before)
        self.validation = Validation()
        self.throughput.restart()
        if self.worker.rank == 0:
            logger.warning(
                "%s; rolled back to %s images with %g of the learning rate",
                reason, f"{self.images_seen:,}", self.guard.learning_rate_factor,
            )  # fmt: skip

    def _latest_checkpoint(self) -> TrainState | None:
        """Load the newest checkpoint, which must be the same on all ranks."""
        self.flush()
        if self.worker.world_size > 1:
            dist.barrier()  # rank 0 may still have been writing it
        state = self.worker.checkpoints.latest()
        if not is_same_on_all_ranks(state.images_seen if state else 0, self.worker):
            raise EnvironmentProblem(
                "the workers see different checkpoints; give them one storage that all can read"
            )
        return state

    def _initial_state(self) -> TrainState:
        """Build the state before the first step."""
        model = self._build_model()
        networks, snapshot = model.state_dict(), model.inference_module().state_dict()
        return TrainState(0, networks, snapshot, optimizers={}, settings=self._initial_settings)

    def _load(self, state: TrainState) -> None:
        self.model.load_state_dict({**state.networks, **state.buffers_of(self.worker.rank)})
        restore_optimizers(self.phases, state.optimizers, state.settings)
        if self.ema is not None:
            self.ema.load(state.snapshot)
        for name, part in self.stateful.items():
            part.load_state_dict(state.stateful.get(name, {}))
        self.images_seen, self.eval_pending = state.images_seen, state.eval_pending

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Train on the next batch; return this worker's metrics, still on the device."""
        self.worker.on_activity(DATA)
        with self.throughput.waiting():
            batch = next(batches).to(self.worker.device)
        self.worker.on_activity(STEP)
        size = self.job.train.batch_size
        progress = self.images_seen / self.total_images
        metrics = self.training_step(batch, self.images_seen // size, progress)
        if self.ema is not None:
            self.ema.update()
        self.images_seen, self.eval_pending = self.images_seen + size, False
        self.throughput.images += size
        return metrics

    def log_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Log the last step's metrics, means over ranks, and the speed since the last log.

        Raises:
            RollbackRequired: a metric of an update that was made is not finite.
            Collapsed: there is a sign of collapse, and guard.collapse is stop.
        """
        values = average_metrics(metrics, self.worker.world_size)
        skipped = self.training_step.skipped_phases
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        unexplained = [name for name in broken if name.partition("/")[0] not in skipped]
        if unexplained:
            names = ", ".join(unexplained)
            raise RollbackRequired(self.guard.escalate(f"{names} no longer finite"))
        values = {name: value for name, value in values.items() if name not in broken}
        images, elapsed_s, waited_s = self.throughput.lap()
        values["images_per_s"] = images / elapsed_s
        values |= self.data_monitor.metrics(elapsed_s, waited_s, self.images_seen)
        values["epoch"] = self.images_seen / self.stream.num_samples
        values |= self.guard.metrics()
        self._log_and_check_collapse(values)

    def _log_and_check_collapse(self, values: Mapping[str, float]) -> None:
        """Log metrics, which must be the same on all ranks, and act on new signs of collapse."""
        if self.job.guard.collapse == "off":
            self._log(values)
            return
        signs = self.collapse.update(values, self.images_seen)
        # Not both: a look at samples may follow a log of the same step, which has one value.
        if DIVERSITY in values:
            judged = {COLLAPSED: float(self.collapse.is_alike)}
        else:
            judged = {"guard/collapse": float(self.collapse.is_collapsed)}
        self._log({**values, **judged})
        if signs and self.job.guard.collapse == "stop":
            raise Collapsed(f"after {self.images_seen:,} images {'; '.join(signs)}")
        if self.worker.rank == 0:
            for sign in signs:
                logger.warning("after %s images %s", f"{self.images_seen:,}", sign)

    def _log(
        self, values: Mapping[str, float], standard_errors: Mapping[str, float] | None = None
    ) -> None:
        self.best.add(values, self.images_seen, standard_errors or {})
        if self.worker.rank == 0:
            self.worker.recorder.log_metrics(values, self.images_seen)

    def validate(self) -> None:
        """Measure the model on the validation set; every rank does its share."""
        self.worker.on_activity("validating")
        with self._inference_weights(), self.throughput.paused():
            self.validation = validate(self.model, self.stream.validation(), self.job, self.worker)
        if self.validation.means:
            self._log(self.validation.means, self.validation.standard_errors)

    def draw_samples(self) -> None:
        """Log the grid of samples and the model's other pictures; rank 0 draws them.

        Raises:
            Collapsed: the samples are all alike, and guard.collapse is stop.
        """
        self.worker.on_activity("drawing samples")
        samples: Tensor | None = None
        with self._inference_weights(), self.throughput.paused():
            if self.worker.rank == 0:
                grids, samples = draw_grids(self.model, self.examples, self.job)
                for name, rows in grids.items():
                    self.worker.recorder.log_grid(name, rows, self.images_seen)
            diversity = self.diversity.measure(samples)
            if diversity is not None:
                self._log_and_check_collapse({DIVERSITY: diversity})

    def save(self, *, eval_pending: bool = False) -> None:
        """Save a checkpoint; rank 0 writes it while training continues.

        Args:
            eval_pending: whether the evaluation that is due at this step was left out.

        Raises:
            RollbackRequired: a tensor is not finite on one of the ranks; it is never saved.
        """
        self.worker.on_activity("saving")
        self._check_finite()
        if not eval_pending:
            self.best.judge(self.images_seen)
        if self.worker.world_size > 1:
            broadcast_buffers(self.model)
        per_rank_buffers = gather_per_rank_buffers(self.model, self.worker.world_size)
        if self.worker.rank != 0:
            return
        networks = self.model.state_dict()
        module = self.model.inference_module()
        state = TrainState(
            self.images_seen,
            networks={k: v for k, v in networks.items() if not is_per_rank(self.model, k)},
            snapshot=self.ema.average if self.ema else module.state_dict(),
            optimizers=optimizer_tensors(self.phases),
            settings=optimizer_settings(self.phases),
            stateful={name: part.state_dict() for name, part in self.stateful.items()},
            eval_pending=eval_pending,
            per_rank_buffers=per_rank_buffers,
        )
        with self.throughput.paused():
            self.worker.checkpoints.save(state)

    def _check_finite(self) -> None:
        tensors = {**self.model.state_dict(), **optimizer_tensors(self.phases)}
        averages = self.ema.average if self.ema else {}
        tensors |= {f"the average of {name}": value for name, value in averages.items()}
        found = any_rank(first_not_finite(tensors), self.worker.device, self.worker.world_size)
        if found is not None:
            raise RollbackRequired(self.guard.escalate(f"{found} no longer finite"))

    def flush(self) -> None:
        """Wait until the saved checkpoints are committed."""
        self.worker.on_activity("writing the checkpoint")
        if self.worker.rank == 0:
            self.worker.checkpoints.flush()

    @contextmanager
    def _inference_weights(self) -> Iterator[None]:
        """Give the model the averaged weights and rank 0's buffers, as for inference."""
        if self.ema is not None:
            self.ema.swap()
        try:
            if self.worker.world_size > 1:
                broadcast_buffers(self.model)
            yield
        finally:
            if self.ema is not None:
                self.ema.swap()


def is_same_on_all_ranks(value: int, worker: Worker) -> bool:
    """Whether every rank calls this with the same ``value``."""
    if worker.world_size == 1:
        return True
    extremes = torch.tensor([value, -value], device=worker.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return bool(extremes.sum() == 0)
