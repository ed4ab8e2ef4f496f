"""One training step: for each due phase, forward, backward, average, check, clip, update."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.config.job import GuardSection, TrainSection
from orchestrator.models.base import Batch, Clock, GenerativeModel, Loss, Phase, Shared
from orchestrator.seeding import seed_of
from orchestrator.training.collectives import mean_over_ranks
from orchestrator.training.divergence import DivergenceGuard, RollbackRequired
from orchestrator.training.nonfinite import Buffers
from orchestrator.training.state import is_per_rank, set_initial_learning_rates

logger = logging.getLogger(__name__)


class _PhaseForward(nn.Module):
    """Forward pass of a phase, with the parameters of the phase's network only.

    DistributedDataParallel wraps this, not the network. So one wrapper's forward covers a whole
    loss, which may run the network twice (real and generated images): one backward pass, one
    all-reduce, and models that need not know of the wrapper.
    """

    def __init__(self, phase: Phase, *, compiled: bool) -> None:
        super().__init__()
        self.module = phase.module
        self.loss = torch.compile(phase.loss) if compiled else phase.loss

    def forward(self, batch: Batch, shared: Shared) -> Loss:
        return self.loss(batch, shared)


class TrainingStep:
    """Trains a model on one batch at a time; with several workers, every rank makes each call.

    What several phases share is computed once per step. With microbatches it is computed again
    for each phase, with the same random numbers: to keep the graphs of all microbatches from one
    phase to the next would cost the memory that microbatches save.
    """

    def __init__(
        self,
        model: GenerativeModel,
        phases: Sequence[Phase],
        settings: TrainSection,
        rank: int = 0,
        world_size: int = 1,
        guard: DivergenceGuard | None = None,
    ) -> None:
        self.model, self.phases, self.settings = model, phases, settings
        self.rank, self.world_size = rank, world_size
        self.device_type = next(model.parameters()).device.type
        self.shared = torch.compile(model.shared) if settings.compile else model.shared
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self.forwards: dict[str, _PhaseForward | DistributedDataParallel] = {}
        self.trained: dict[str, list[nn.Parameter]] = {}
        for phase in phases:
            forward = _PhaseForward(phase, compiled=settings.compile)
            self.forwards[phase.name] = _distributed(forward) if world_size > 1 else forward
            self.trained[phase.name] = [p for p in phase.module.parameters() if p.requires_grad]
        self.guard = guard or DivergenceGuard(GuardSection(gradients="off"))
        self.buffers = Buffers(model) if self.guard.is_enabled else None
        self.skipped_phases: set[str] = set()
        """The phases whose update was skipped in the last step."""
        set_initial_learning_rates(phases)

    @property
    def ddp_modules(self) -> list[DistributedDataParallel]:
        """The modules that average gradients: one for each phase, none with a single worker."""
        wrapped = self.forwards.values()
        return [each for each in wrapped if isinstance(each, DistributedDataParallel)]

    def __call__(self, batch: Batch, step: int, progress: float) -> dict[str, Tensor]:
        """Run every phase that is due and update its network.

        Args:
            batch: this worker's share, on the model's device.
            step: number of steps done so far; with the seed it keys all randomness.
            progress: fraction of the run that is done, in [0, 1).

        Returns:
            This worker's means, named <phase>/<metric>, and the metrics of the model's
            ``after_step``; detached and still on the device.

        Raises:
            RollbackRequired: an update must not be made, and skipping it does not help.
        """
        clock = Clock(step, progress)
        if self.settings.channels_last:
            batch = batch.channels_last()
        parts = batch.split(self.settings.microbatch_size or len(batch))
        shared = self._shared(parts[0], step, 0) if len(parts) == 1 else None
        # Averaged over ranks, each image has the same weight, even if some ranks have one more.
        uneven = self.settings.batch_size % self.world_size
        whole = self.settings.batch_size / self.world_size if uneven else len(batch)
        metrics: dict[str, Tensor] = {}
        self.skipped_phases = set()
        if self.buffers is not None:
            self.buffers.snapshot()
        for phase in self.phases:
            if step % phase.interval:
                continue
            self._train_only(phase)
            for index, part in enumerate(parts):
                weight = len(part) / whole
                with self._gradient_sync(phase, last=index == len(parts) - 1):
                    loss = self._forward(phase, part, shared, step, index)
                    (loss.value if weight == 1 else loss.value * weight).backward()
                for name, value in {"loss": loss.value.detach(), **loss.metrics}.items():
                    key, share = f"{phase.name}/{name}", value if weight == 1 else value * weight
                    metrics[key] = metrics[key] + share if key in metrics else share
            metrics[f"{phase.name}/grad_norm"] = self._update(phase, clock)
        self._train_only(*self.phases)
        if self.skipped_phases:  # a loss that is not finite must not reach after_step
            return metrics
        return {**metrics, **self._after_step(metrics, clock)}

    def _after_step(self, metrics: Mapping[str, Tensor], clock: Clock) -> Mapping[str, Tensor]:
        """Call the model's ``after_step`` with the means over all ranks that it asks for."""
        means = {name: metrics[name] for name in self.model.averaged if name in metrics}
        if self.world_size > 1 and means:
            values = mean_over_ranks(means.values(), self.world_size)
            means = dict(zip(means, values, strict=True))
        with torch.no_grad():
            return self.model.after_step(means, clock)

    def _forward(
        self, phase: Phase, part: Batch, shared: Shared | None, step: int, index: int
    ) -> Loss:
        if shared is None:
            shared = self._shared(part, step, index)
        self._seed(phase.name, step, index)
        with self._autocast():
            loss: Loss = self.forwards[phase.name](part, shared)
        return loss

    def _gradient_sync(self, phase: Phase, *, last: bool) -> AbstractContextManager[None]:
        """Let the gradients of several backward passes add up; average them in the last one."""
        forward = self.forwards[phase.name]
        if last or not isinstance(forward, DistributedDataParallel):
            return nullcontext()
        return forward.no_sync()

    def _shared(self, part: Batch, step: int, index: int) -> Shared:
        self._seed("shared", step, index)
        with self._autocast():
            return self.shared(part)

    def _seed(self, purpose: str, step: int, index: int) -> None:
        """Seed the generators of the CPU and of this worker's device.

        ``torch.manual_seed`` seeds those of all devices, and where CUDA has not started it formats
        the call stack first: 0.2 ms.
        """
        seed = seed_of(purpose, self.settings.seed, step, self.rank, index)
        torch.default_generator.manual_seed(seed)
        if self.device_type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
        elif self.device_type != "cpu":
            torch.manual_seed(seed)

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device_type, torch.bfloat16, enabled=enabled)

    def _train_only(self, *phases: Phase) -> None:
        """Freeze all other networks: a loss may run them but must leave no gradient in them."""
        names = {phase.name for phase in phases}
        for name, parameters in self.trained.items():
            for parameter in parameters:
                parameter.requires_grad_(name in names)

    def _update(self, phase: Phase, clock: Clock) -> Tensor:
        factor = phase.learning_rate_factor(clock) * self.guard.learning_rate_factor
        for group in phase.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if phase.momentum is not None:
                group["momentum"] = phase.momentum(clock)
        parameters = [p for p in phase.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.buffers is not None and not self._may_update(phase, norm, self.buffers):
            phase.optimizer.zero_grad(set_to_none=True)
            return norm
        if self.settings.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.max_grad_norm, norm)
        phase.optimizer.step()
        phase.optimizer.zero_grad(set_to_none=True)
        return norm

    def _may_update(self, phase: Phase, norm: Tensor, buffers: Buffers) -> bool:
        """Whether to make the update; the same on all ranks, because they have the same gradient.

        Also with microbatches: the last backward pass averages the sum over all of them.

        Raises:
            RollbackRequired: the update must not be made, and skipping it does not help.
        """
        if self.guard.settings.max_grad_norm_ratio is not None and self.world_size > 1:
            dist.broadcast(norm, src=0)  # different devices may round to either side of the limit
        decision = self.guard.decide(phase.name, norm.item())
        if decision.action == "continue":
            return True
        if self.rank == 0 and self.guard.skipped_updates == 1:
            logger.warning("%s; this update is skipped: see guard/skipped_updates", decision.reason)
        self.skipped_phases.add(phase.name)
        if decision.action == "skip":
            lost = buffers.restore(norm.device, self.world_size)
            if lost is not None:
                reason = f"{decision.reason}, and neither is the buffer {lost}"
                decision = self.guard.escalate(reason)
        if decision.action != "skip":
            phase.optimizer.zero_grad(set_to_none=True)
            raise RollbackRequired(decision)
        return False


def _distributed(forward: _PhaseForward) -> DistributedDataParallel:
    """Wrap ``forward`` to average gradients, but not buffers: see ``broadcast_buffers``."""
    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if renamed else "broadcast_buffers"] = False  # since torch 2.14
    return DistributedDataParallel(forward, **options)


def broadcast_buffers(model: GenerativeModel) -> None:
    """Copy rank 0's buffers to every rank, before saving or evaluating; every rank calls it.

    Batch statistics differ from rank to rank and are not averaged while training. A model's
    ``per_rank_buffers`` stay as they are.
    """
    for name, buffer in model.named_buffers():
        if not is_per_rank(model, name):
            dist.broadcast(buffer, src=0)


def average_metrics(metrics: Mapping[str, Tensor], world_size: int) -> dict[str, float]:
    """Average over all ranks, as numbers; every rank calls it with the same names."""
    values = mean_over_ranks(metrics.values(), world_size).tolist()
    return dict(zip(metrics, values, strict=True))
