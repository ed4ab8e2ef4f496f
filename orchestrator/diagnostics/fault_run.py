"""A job run as a user runs it, calmly and through drawn faults, and what differs."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.config.job import Job
from orchestrator.diagnostics.compare_runs import Evidence, compare
from orchestrator.diagnostics.fault_injection import FAULTS, Punisher, command_of, drawn
from orchestrator.diagnostics.resume_check import Certificate, Part
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage

STEPS_PER_FAULT = 150
CHECKPOINT_STEPS = 10


def drill(
    path: Path,
    settings: Sequence[str],
    job: Job,
    faults: int,
    seed: int,
    tell: Callable[[str], None],
) -> Certificate:
    """Run the job at ``path``, shortened, twice: calmly, and through so many faults.

    Each run has a Ray cluster of its own on this machine; nothing is written to the job's places.

    Args:
        settings: as given with --set.
        job: what ``path`` and ``settings`` give.
        seed: draws which faults come in which order: each kind before any comes again.

    Raises:
        TrainingFailed: a run did not finish.
    """
    size = job.train.batch_size
    names = drawn(faults, seed)
    images = (faults + 1) * STEPS_PER_FAULT * size
    short = [
        "register=null",
        "train.epochs=null",
        f"train.images={images}",
        f"train.checkpoint_every={CHECKPOINT_STEPS * size}",
        f"train.sample_every={images}",
        f"cluster.max_failures={faults + 1}",
    ]
    short += [f"train.validate_every={images}"] if job.data.validation else []
    with tempfile.TemporaryDirectory(prefix="drill-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        calm = _trained(path, [*settings, *short], [], folder / "calm", tell)
        hit = _trained(path, [*settings, *short], names, folder / "hit", tell)
    part = Part(", ".join(names), tuple(compare(calm, hit)))
    workers = job.cluster.max_workers
    return Certificate(job.name, job.model.name, workers, calm.state.images_seen, (part,))


def _trained(
    path: Path,
    settings: Sequence[str],
    names: Sequence[str],
    folder: Path,
    tell: Callable[[str], None],
) -> Evidence:
    """What the job's last checkpoint holds after a run through these faults."""
    folder.mkdir()
    places = [f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    storage = open_storage(str(folder / "runs"))
    faults = [(name, FAULTS[name]) for name in names]
    tell(f"running it through {len(names)} faults" if names else "running it calmly")
    punisher = Punisher(command_of(path, [*settings, *places]), storage, os.environ, faults, tell)
    punisher.run()
    for name, seconds in zip(names, punisher.recoveries_s, strict=True):
        tell(f"{name}: {seconds:.1f} s to the next checkpoint")
    (run,) = {key.partition("/")[0] for key in storage.list()}
    state = Checkpoints(storage, f"{run}/checkpoints", "").latest()
    assert state is not None, "a run that finished has a checkpoint"
    return Evidence(state, {}, {})
