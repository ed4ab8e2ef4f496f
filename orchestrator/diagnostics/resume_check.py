"""Check that a job resumes exactly: interrupt it, resume it, and compare it with a whole run."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.config.job import Job
from orchestrator.diagnostics.compare_runs import EqualityCheck, compare
from orchestrator.diagnostics.local_run import Interruption, LocalRun

CHECKPOINT_STEPS, VALIDATION_STEPS = 5, 8


@dataclass(frozen=True)
class InterruptionResult:
    """Comparison of the uninterrupted run with one that was interrupted."""

    interruption: str
    checks: tuple[EqualityCheck, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return all(check.difference is None for check in self.checks)


@dataclass(frozen=True)
class ResumeReport:
    """Result of verify-resume."""

    job: str
    model: str
    workers: int
    images: int
    """Images seen by each run."""
    interruptions: tuple[InterruptionResult, ...]

    @property
    def equal(self) -> bool:
        """Whether all interrupted runs ended in the same state as the uninterrupted one."""
        return all(result.equal for result in self.interruptions)

    def json(self) -> str:
        """Format the report for a script."""
        return json.dumps({**asdict(self), "equal": self.equal}, indent=2)

    def tables(self) -> list[list[tuple[str, str, str]]]:
        """One table of (interruption, what was compared, outcome), without a header."""
        rows = [
            (result.interruption, f"{check.count:,} {check.compared}", check.difference or "equal")
            for result in self.interruptions
            for check in result.checks
        ]
        return [rows]


def shorten_job(job: Job, steps: int) -> Job:
    """Limit ``job`` to ``steps`` steps, with checkpoints and validations in between."""
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


def check_resume(
    job: Job, after_images: int, log: Callable[[str], None], folder: Path | None = None
) -> ResumeReport:
    """Run ``job`` without interruption, stopped, and killed after ``after_images`` images.

    Each run uses as many processes of this machine as the job has workers, and the job's data.
    ``folder`` keeps the checkpoints and logs of the runs; by default they are deleted.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="verify-resume-") as temporary:
            return check_resume(job, after_images, log, Path(temporary))
    world_size = job.cluster.max_workers
    log("training without interruption")
    uninterrupted = LocalRun(job, folder / "baseline", world_size)
    uninterrupted.run()
    baseline, results = uninterrupted.artifacts(), []
    for kind in ("stopped", "killed"):
        interruption = f"{kind} after {after_images:,} images"
        log(f"training, {interruption}, then resuming")
        run = LocalRun(job, folder / kind, world_size)
        run.run(Interruption(after_images, killed=kind == "killed"))
        run.run()
        results.append(InterruptionResult(interruption, compare(baseline, run.artifacts())))
    images = baseline.state.images_seen
    return ResumeReport(job.name, job.model.name, world_size, images, tuple(results))
