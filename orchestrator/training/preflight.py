"""A trial step before the first one, which finds common mistakes in GANs and data parallelism.

Every rank takes the step on a few images, then restores everything. Within seconds it finds what
would otherwise ruin a run: a network that no phase trains, noise that is the same on all ranks,
state that differs between ranks.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from orchestrator.errors import UsageError
from orchestrator.models.base import Batch, Clock, GenerativeModel, Loss, Phase, Shared
from orchestrator.seeding import seed_of
from orchestrator.training.collectives import gather, mean_over_ranks
from orchestrator.training.instrumentation import (
    RandomDraws,
    count_backward_passes,
    restore_afterwards,
    tensor_bytes,
)
from orchestrator.training.interfaces import Worker
from orchestrator.training.state import is_per_rank

IMAGES = 2
"""Images on each rank: batch normalisation refuses a single image where a map is one pixel."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One problem or possible problem, in one line."""

    severity: Literal["error", "warning"]
    message: str


def run_preflight(
    model: GenerativeModel,
    phases: Sequence[Phase],
    examples: Batch,
    images_per_pass: int,
    worker: Worker,
) -> None:
    """Check a model with a trial step: log warnings and raise errors; every rank calls it.

    Model, optimizers and random state are restored afterwards.

    Raises:
        UsageError: the run would go wrong, with a line for each reason.
    """
    findings = find_problems(model, phases, examples, images_per_pass, worker)
    for finding in findings:
        if finding.severity == "warning" and worker.rank == 0:
            logger.warning(finding.message)
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors:
        raise UsageError("\n".join(errors))


def find_problems(
    model: GenerativeModel,
    phases: Sequence[Phase],
    examples: Batch,
    images_per_pass: int,
    worker: Worker,
) -> list[Finding]:
    """Return all findings, the same on every rank."""
    findings = [*_untrained_parameters(model, phases), *_batch_norm_of_one(model, images_per_pass)]
    if note := describe_batch_statistics(model, images_per_pass):
        findings.append(Finding("warning", note))
    findings += _differing_buffers("before the first step", _common_buffers(model), worker)
    if any(finding.severity == "error" for finding in findings):
        return findings
    part = _rank_examples(examples, images_per_pass, worker)
    with restore_afterwards(model), RandomDraws() as draws:
        torch.manual_seed(seed_of("rehearsal", worker.rank))
        findings += _take_trial_step(model, phases, part, worker)
        if worker.world_size > 1 and not findings:
            findings += _same_noise(draws, worker)
            findings += _drifting_buffers(model, worker)
    return findings


def _untrained_parameters(model: GenerativeModel, phases: Sequence[Phase]) -> Iterator[Finding]:
    owned = {id(p) for phase in phases for p in phase.module.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in owned:
            yield Finding(
                "error",
                f"{name} is in no phase's module, so nothing trains it; give it to a phase in "
                "phases(), or set requires_grad to False",
            )


def _batch_norm_of_one(model: GenerativeModel, images_per_pass: int) -> Iterator[Finding]:
    norms = [name for name, module in model.named_modules() if _is_batch_norm(module)]
    if norms and images_per_pass == 1:
        yield Finding(
            "warning",
            f"batch normalisation ({norms[0]} and {len(norms) - 1} more) gets 1 image at a time on "
            "each worker, which is instance normalisation; raise train.batch_size or use fewer "
            "cluster.workers, unless that is meant",
        )


def describe_batch_statistics(model: GenerativeModel, images_per_pass: int) -> str:
    """Say that a model draws with other statistics than it trains with; empty if it does not.

    A generator without running statistics trains with those of a pass, and draws each image with
    the image's own, so that no image depends on those beside it.
    """
    norms = [m for m in model.inference_module().modules() if _is_batch_norm(m)]
    if images_per_pass == 1 or all(norm.running_mean is not None for norm in norms):
        return ""
    return (
        f"the generator's batch normalisation trains with the statistics of {images_per_pass} "
        "images and draws each image with its own; use model.norm: instance, or "
        "train.microbatch_size: 1"
    )


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the result for an image depends on the other images of its batch."""
    return any(_is_batch_norm(module) for module in model.modules())


def _rank_examples(examples: Batch, images_per_pass: int, worker: Worker) -> Batch:
    """Pick images and positions that differ from those of the other ranks."""
    count = IMAGES if images_per_pass > 1 else 1
    numbers = torch.arange(worker.rank * count, (worker.rank + 1) * count, device=worker.device)
    picked = [part for n in numbers.tolist() for part in examples.split(1)[n % len(examples) :][:1]]
    whole: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in picked])
        for name in ("images", "condition", "labels", "captions")
        if getattr(examples, name) is not None
    }
    return replace(examples, positions=numbers, **whole)


def _take_trial_step(
    model: GenerativeModel, phases: Sequence[Phase], part: Batch, worker: Worker
) -> list[Finding]:
    """Run each phase's forward and backward pass, and ``after_step``; stop at the first error."""
    metrics: dict[str, Tensor] = {}
    shared = model.shared(part)
    for phase in phases:
        for parameter in model.parameters():
            parameter.grad = None
        with _only_trainable(phase, phases):
            loss, error = _run_phase(phase, part, shared)
        if error:
            return [Finding("error", error)]
        for name, value in {"loss": loss.value, **loss.metrics}.items():
            metrics[f"{phase.name}/{name}"] = value.detach()
    means = {name: metrics[name] for name in model.averaged if name in metrics}
    if means:
        means = dict(zip(means, mean_over_ranks(means.values(), worker.world_size), strict=True))
    with torch.no_grad():
        model.after_step(means, Clock(0, 0.0))
    return []


@contextmanager
def _only_trainable(phase: Phase, phases: Sequence[Phase]) -> Iterator[None]:
    """Freeze the networks of all other phases inside."""
    others = [p for other in phases if other is not phase for p in other.module.parameters()]
    frozen = [p for p in others if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _run_phase(phase: Phase, part: Batch, shared: Shared) -> tuple[Loss, str]:
    """Run the forward and the backward pass; return the loss and what is wrong, if anything."""
    with count_backward_passes() as backwards:
        loss = phase.loss(part, shared)
    if backwards:
        return loss, (
            f"the loss of phase {phase.name} goes backward itself; return it instead: a second "
            "backward pass through one forward breaks the averaging of gradients"
        )
    try:
        loss.value.backward()
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        return loss, (
            f"phase {phase.name} goes backward through a graph that an earlier phase has used up; "
            "the earlier one must use shared tensors with .detach()"
        )
    return loss, _describe_idle_parameters(phase)


def _describe_idle_parameters(phase: Phase) -> str:
    """Name the phase's parameters that have no gradient; an empty text if there are none."""
    parameters = phase.module.named_parameters()
    idle = [name for name, p in parameters if p.requires_grad and p.grad is None]
    if not idle:
        return ""
    more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
    return (
        f"phase {phase.name} gives no gradient to {', '.join(idle[:3])}{more}; its loss must "
        "depend on all of its module, or several workers wait for each other forever"
    )


def _same_noise(draws: RandomDraws, worker: Worker) -> Iterator[Finding]:
    by_rank = gather(draws.digests, worker.world_size)
    if any(len(set(same)) == 1 for same in zip(*by_rank, strict=False)):
        yield Finding(
            "error",
            f"all {worker.world_size} ranks draw the same random numbers, so together they see "
            "less noise than one; draw it with batch.normal or batch.uniform, and seed nothing",
        )


def _drifting_buffers(model: GenerativeModel, worker: Worker) -> list[Finding]:
    """Find buffers that one step makes different on each rank; batch statistics may differ."""
    of_norms = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if _is_batch_norm(module)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    buffers = ((name, b) for name, b in _common_buffers(model) if name not in of_norms)
    return _differing_buffers("after one step", buffers, worker)


def _differing_buffers(
    when: str, buffers: Iterator[tuple[str, Tensor]], worker: Worker
) -> list[Finding]:
    """Return a finding for each buffer that is not the same on all ranks."""
    if worker.world_size == 1:
        return []
    digests = {
        name: (hashlib.sha256(tensor_bytes(buffer)).hexdigest(), buffer.numel())
        for name, buffer in buffers
    }
    findings = []
    by_rank = gather(digests, worker.world_size)
    for name, (digest, size) in by_rank[0].items():
        if all(other.get(name, ("", 0))[0] == digest for other in by_rank):
            continue
        line = f"the buffer {name} differs between ranks {when}; "
        if size == 1 or when.startswith("before"):
            line += "compute it in after_step from metrics named in `averaged`, which are means"
            findings.append(Finding("error", line))
        else:
            line += "checkpoints save only rank 0's, so a resumed run is not exact"
            findings.append(Finding("warning", line))
    return findings


def _common_buffers(model: GenerativeModel) -> Iterator[tuple[str, Tensor]]:
    """The buffers that must be the same on all ranks."""
    return ((name, b) for name, b in model.named_buffers() if not is_per_rank(model, name))
