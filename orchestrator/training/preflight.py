"""A rehearsal of one step before the first: what goes wrong with GANs and data parallelism.

Every rank takes the step on a few images, then puts everything back as it was. Found out in
seconds instead of in a ruined training: a network that nobody trains, noise that is the same on
all ranks, state that drifts apart.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.errors import UsageError
from orchestrator.models.base import Batch, Clock, GenerativeModel, Phase
from orchestrator.seeding import seed_of
from orchestrator.training.interfaces import Worker
from orchestrator.training.state import is_per_rank

IMAGES = 2
"""Images of a rehearsal on each rank: batch normalisation refuses one where a map is one pixel."""
RANDOM = ("rand", "normal", "bernoulli", "uniform", "dropout", "multinomial", "exponential")
"""Parts of the names of torch's random operators."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be, in a line."""

    severity: Literal["error", "warning"]
    message: str


def run_preflight(
    model: GenerativeModel,
    phases: Sequence[Phase],
    examples: Batch,
    images_per_pass: int,
    worker: Worker,
) -> None:
    """Log each warning, and raise what must not be trained; every rank calls it.

    Model, optimizers and random state are afterwards what they were.

    Raises:
        UsageError: the training would be wrong, with a line for each reason.
    """
    findings = find(model, phases, examples, images_per_pass, worker)
    for finding in findings:
        if finding.severity == "warning" and worker.rank == 0:
            logger.warning(finding.message)
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors:
        raise UsageError("\n".join(errors))


def find(
    model: GenerativeModel,
    phases: Sequence[Phase],
    examples: Batch,
    images_per_pass: int,
    worker: Worker,
) -> list[Finding]:
    """All findings, the same on every rank."""
    findings = [*_untrained(model, phases), *_batch_norm_of_one(model, images_per_pass)]
    findings += _different("before the first step", _digests(_common_buffers(model)), worker)
    if findings and any(finding.severity == "error" for finding in findings):
        return findings
    part = _part(examples, images_per_pass, worker)
    with _as_if_nothing_happened(model), _RandomDraws() as draws:
        torch.manual_seed(seed_of("rehearsal", worker.rank))
        findings += _rehearsed(model, phases, part, worker)
        if worker.world_size > 1 and not findings:
            findings += _same_noise(draws, worker)
            findings += _drifted(model, worker)
    return findings


def _untrained(model: GenerativeModel, phases: Sequence[Phase]) -> Iterator[Finding]:
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


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether what an image becomes depends on the others of its batch."""
    return any(_is_batch_norm(module) for module in model.modules())


def _part(examples: Batch, images_per_pass: int, worker: Worker) -> Batch:
    """Images of this rank's own, at positions of its own."""
    count = IMAGES if images_per_pass > 1 else 1
    numbers = torch.arange(worker.rank * count, (worker.rank + 1) * count, device=worker.device)
    picked = [part for n in numbers.tolist() for part in examples.split(1)[n % len(examples) :][:1]]
    whole: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in picked])
        for name in ("images", "condition", "labels", "captions")
        if getattr(examples, name) is not None
    }
    return replace(examples, positions=numbers, **whole)


def _rehearsed(
    model: GenerativeModel, phases: Sequence[Phase], part: Batch, worker: Worker
) -> list[Finding]:
    """Each phase's forward and backward pass, and the model's ``after_step``."""
    metrics: dict[str, Tensor] = {}
    shared = model.shared(part)
    for phase in phases:
        for parameter in model.parameters():
            parameter.grad = None
        others = [p for other in phases if other is not phase for p in other.module.parameters()]
        frozen = [p for p in others if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        with _counting_backward() as backwards:
            loss = phase.loss(part, shared)
        if backwards:
            return [
                Finding(
                    "error",
                    f"the loss of phase {phase.name} goes backward itself; return it instead: a "
                    "second backward pass through one forward breaks the averaging of gradients",
                )
            ]
        try:
            loss.value.backward()
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            return [
                Finding(
                    "error",
                    f"phase {phase.name} goes backward through a graph that an earlier phase has "
                    "used up; the earlier one must use shared tensors with .detach()",
                )
            ]
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        idle = [
            name
            for name, parameter in phase.module.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        if idle:
            return [
                Finding(
                    "error",
                    f"phase {phase.name} gives no gradient to {', '.join(idle[:3])}"
                    f"{f' and {len(idle) - 3} more' if len(idle) > 3 else ''}; its loss must "
                    "depend on all of its module, or several workers wait for each other forever",
                )
            ]
        for name, value in {"loss": loss.value, **loss.metrics}.items():
            metrics[f"{phase.name}/{name}"] = value.detach()
    means = {name: _mean(metrics[name], worker) for name in model.averaged if name in metrics}
    with torch.no_grad():
        model.after_step(means, Clock(0, 0.0))
    return []


def _mean(value: Tensor, worker: Worker) -> Tensor:
    value = value.float().clone()
    if worker.world_size > 1:
        dist.all_reduce(value)
    return value / worker.world_size


def _same_noise(draws: "_RandomDraws", worker: Worker) -> Iterator[Finding]:
    everywhere = _gathered(draws.digests, worker)
    if any(len(set(same)) == 1 for same in zip(*everywhere, strict=False)):
        yield Finding(
            "error",
            f"all {worker.world_size} ranks draw the same random numbers, so together they see "
            "less noise than one; draw it with batch.normal or batch.uniform, and seed nothing",
        )


def _drifted(model: GenerativeModel, worker: Worker) -> list[Finding]:
    """State that one step makes different on each rank. Batch statistics may: see step.py."""
    of_norms = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if _is_batch_norm(module)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    buffers = ((name, b) for name, b in _common_buffers(model) if name not in of_norms)
    return _different("after one step", _digests(buffers), worker)


def _different(when: str, digests: dict[str, tuple[str, int]], worker: Worker) -> list[Finding]:
    """A finding for each buffer that is not the same on all ranks."""
    if worker.world_size == 1:
        return []
    findings = []
    everywhere = _gathered(digests, worker)
    for name, (own, size) in everywhere[0].items():
        if all(other.get(name, ("", 0))[0] == own for other in everywhere):
            continue
        line = f"the buffer {name} differs between ranks {when}; "
        if size == 1 or when.startswith("before"):
            line += "compute it in after_step from metrics named in `averaged`, which are means"
            findings.append(Finding("error", line))
        else:
            line += "checkpoints keep that of rank 0 alone, so a resumed training is not exact"
            findings.append(Finding("warning", line))
    return findings


def _common_buffers(model: GenerativeModel) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are to be the same on all ranks."""
    return ((name, b) for name, b in model.named_buffers() if not is_per_rank(model, name))


def _digests(buffers: Iterator[tuple[str, Tensor]]) -> dict[str, tuple[str, int]]:
    """A hash of each buffer's bytes, and its size."""
    return {
        name: (hashlib.sha256(_bytes(buffer)).hexdigest(), buffer.numel())
        for name, buffer in buffers
    }


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    data: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return data


def _gathered(value: Any, worker: Worker) -> list[Any]:
    everywhere: list[Any] = [None] * worker.world_size
    dist.all_gather_object(everywhere, value)
    return everywhere


@contextmanager
def _as_if_nothing_happened(model: GenerativeModel) -> Iterator[None]:
    """Put back the model's tensors, gradients and the random state."""
    before = deepcopy(model.state_dict())
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            model.load_state_dict(before)
            for parameter in model.parameters():
                parameter.grad = None


@contextmanager
def _counting_backward() -> Iterator[list[None]]:
    """A list that gets longer with each backward pass inside."""
    calls: list[None] = []
    original = torch.autograd.backward

    def counted(*args: Any, **options: Any) -> None:
        calls.append(None)
        original(*args, **options)

    torch.autograd.backward = counted
    try:
        yield calls
    finally:
        torch.autograd.backward = original


class _RandomDraws(TorchDispatchMode):
    """Hashes what torch's random operators give inside, if that is more than a few numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.digests: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if (
            any(part in name for part in RANDOM)
            and isinstance(result, Tensor)
            and result.numel() >= 16
        ):
            self.digests.append(hashlib.sha256(_bytes(result)).hexdigest())
        return result
