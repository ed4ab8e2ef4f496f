"""Run a job as a user does, without and with injected faults, and compare the results."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.config.job import Job
from orchestrator.diagnostics.compare_runs import RunArtifacts, compare
from orchestrator.diagnostics.fault_injection import FAULTS, FaultInjector, draw_faults, run_command
from orchestrator.diagnostics.resume_check import InterruptionResult, ResumeReport
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage

STEPS_PER_FAULT = 150
CHECKPOINT_STEPS = 10


def run_with_faults(
    path: Path,
    overrides: Sequence[str],
    job: Job,
    num_faults: int,
    seed: int,
    log: Callable[[str], None],
) -> ResumeReport:
    """Run a shortened job twice: without faults, and with ``num_faults`` faults.

    Each run has its own Ray cluster on this machine. Nothing is written to the job's storage or
    tracking server.

    Args:
        path: the job file; with ``overrides``, as given with --set, it is ``job``.
        seed: of the choice and order of faults; each kind comes once before any is repeated.

    Raises:
        TrainingFailed: a run did not finish.
    """
    names, size = draw_faults(num_faults, seed), job.train.batch_size
    images = (num_faults + 1) * STEPS_PER_FAULT * size
    short = [
        *overrides,
        "register=null",
        "train.epochs=null",
        f"train.images={images}",
        f"train.checkpoint_every={CHECKPOINT_STEPS * size}",
        f"train.sample_every={images}",
        f"cluster.max_failures={num_faults + 1}",
    ]
    short += [f"train.validate_every={images}"] if job.data.validation else []
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        baseline = _run(path, short, [], Path(folder, "baseline"), log)
        faulty = _run(path, short, names, Path(folder, "faulty"), log)
    result = InterruptionResult(", ".join(names), compare(baseline, faulty))
    workers, images_seen = job.cluster.max_workers, baseline.state.images_seen
    return ResumeReport(job.name, job.model.name, workers, images_seen, (result,))


def _run(
    path: Path,
    overrides: Sequence[str],
    fault_names: Sequence[str],
    folder: Path,
    log: Callable[[str], None],
) -> RunArtifacts:
    """Run the job with these faults; return the state in its last checkpoint."""
    folder.mkdir()
    places = [f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    storage = open_storage(str(folder / "runs"))
    faults = [(name, FAULTS[name]) for name in fault_names]
    log(f"training with {len(faults)} faults" if faults else "training without faults")
    command = run_command(path, [*overrides, *places])
    injector = FaultInjector(command, storage, os.environ, faults, log)
    injector.run()
    for name, seconds in zip(fault_names, injector.recoveries_s, strict=True):
        log(f"{name}: {seconds:.1f} s to the next checkpoint")
    (run,) = {key.partition("/")[0] for key in storage.list()}
    state = Checkpoints(storage, f"{run}/checkpoints", "").latest()
    assert state is not None, "a run that finished has a checkpoint"
    return RunArtifacts(state, {}, {})
