"""Whether a job's training can be interrupted anywhere: tried, and written down."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.config.job import Job, WorkerRange
from orchestrator.diagnostics.compare_runs import Check, compare
from orchestrator.diagnostics.local_run import Interruption, Trial

CHECKPOINT_STEPS, VALIDATION_STEPS = 5, 8


@dataclass(frozen=True)
class Part:
    """One way of interrupting, and what was compared."""

    how: str
    checks: tuple[Check, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return all(check.difference is None for check in self.checks)


@dataclass(frozen=True)
class Certificate:
    """What was compared between an uninterrupted training and interrupted ones."""

    job: str
    model: str
    workers: int
    images: int
    parts: tuple[Part, ...]

    @property
    def equal(self) -> bool:
        """Whether all the interrupted trainings ended where the uninterrupted one ended."""
        return all(part.equal for part in self.parts)

    def json(self) -> str:
        """The certificate for a script."""
        return json.dumps({**asdict(self), "equal": self.equal}, indent=2)

    def rows(self) -> list[tuple[str, str, str]]:
        """A line for each thing that was compared: how, what, the outcome."""
        return [
            (part.how, f"{check.count:,} {check.what}", check.difference or "equal")
            for part in self.parts
            for check in part.checks
        ]


def shortened(job: Job, steps: int) -> Job:
    """The same training over ``steps`` steps, with checkpoints and validations in between."""
    size = job.train.batch_size
    changes = {
        "epochs": None,
        "images": steps * size,
        "log_every": size,
        "checkpoint_every": CHECKPOINT_STEPS * size,
        "sample_every": steps * size,
        "validate_every": VALIDATION_STEPS * size if job.data.validation else None,
    }
    return job.model_copy(update={"train": job.train.model_copy(update=changes)})


def certify(
    job: Job, at: int, tell: Callable[[str], None], folder: Path | None = None
) -> Certificate:
    """Train ``job`` whole, stopped after ``at`` images, and lost after ``at`` images.

    It runs on processes of this machine, as many as the job has workers, with the job's data.

    Args:
        tell: is told what comes next.
        folder: where the trainings leave what they did; by default nothing stays.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="verify-resume-") as temporary:
            return certify(job, at, tell, Path(temporary))
    workers = job.cluster.workers
    world_size = workers.max if isinstance(workers, WorkerRange) else workers
    tell("training without an interruption")
    whole = Trial(job, folder / "whole", world_size)
    whole.run()
    evidence, parts = whole.evidence(), []
    for how, lost in (("stopped", False), ("lost", True)):
        words = f"{how} after {at:,} images"
        tell(f"training, {words}, and going on")
        trial = Trial(job, folder / how, world_size)
        trial.run(Interruption(at, lost))
        trial.run()
        parts.append(Part(words, tuple(compare(evidence, trial.evidence()))))
    images = evidence.state.images_seen
    return Certificate(job.name, job.model.name, world_size, images, tuple(parts))
