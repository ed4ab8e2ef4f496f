"""Short runs of a job with several numbers of workers, by the trainer that `run` uses."""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob, load_job
from orchestrator.config.paths import resolve_places
from orchestrator.console import say
from orchestrator.data.datasets.sources import ensure_data
from orchestrator.data.format.shard_index import open_set
from orchestrator.diagnostics.scaling_figure import scaling_figure
from orchestrator.diagnostics.scaling_results import Measured, to_json
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.runs.driver import unique
from orchestrator.runs.worker_setup import Setup
from orchestrator.sweeps.report.drawing import to_png
from orchestrator.tracking import RunRef
from orchestrator.training.loop import Outcome

WARM_UP = 5
"""Steps that are not counted: the first ones allocate, compile and fill what reads ahead."""
DEFAULT_STEPS = 40
UNSTEADY = 1.2
"""A mean step so many times as long as the median one is told: the numbers are no good then."""
_NEVER = 1 << 50
"""More images than any training has."""


def load_jobs(path: Path, overrides: Sequence[str], workers: Sequence[int]) -> list[LoadedJob]:
    """The job with each number of workers, through all its checks.

    Raises JobFileError for a number that the job cannot be split over, as for any other mistake.
    """
    alone = ("sweep=null",)  # of a search one training is timed, with the values outside `space`
    return [load_job(path, (*overrides, *alone, f"cluster.workers={n}")) for n in workers]


def parse_workers(text: str) -> list[int]:
    """The numbers in "1,2,4", smallest first. Raises UsageError if it is none such."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--workers {text}: is no list of numbers from 1 on; write 1,2,4")
    return sorted({int(part) for part in parts})


def measure_scaling(
    loaded: Sequence[LoadedJob],
    images: int | None,
    train_each: Callable[[Sequence[Setup]], Iterator[tuple[Setup, Outcome]]],
) -> list[Measured]:
    """Time the steps of each of the jobs, one after the other; nothing is kept of them.

    Args:
        loaded: the same job with several numbers of workers.
        images: to train on for each of them after a warm-up; by default 40 batches.
        train_each: what runs the jobs in turn: cluster.scaling_runs.train_each.

    Raises:
        EnvironmentProblem: the cluster has no room for one of them; none has begun then.
        OrchestratorError: what ended a training.
    """
    jobs = [resolve_places(each.job) for each in loaded]
    ensure_data(jobs[0].data, say)
    num_samples = open_set(jobs[0].data.train).num_samples
    batch_size = jobs[0].train.batch_size
    num_steps = DEFAULT_STEPS if images is None else math.ceil(images / batch_size)
    setups = [
        _setup(job, each, WARM_UP + num_steps) for job, each in zip(jobs, loaded, strict=True)
    ]
    say(
        f"{num_steps} steps of {batch_size} images for each number of workers, after {WARM_UP} to "
        f"warm up; the set has {num_samples:,} images"
    )
    results = []
    for setup, outcome in train_each(setups):
        measured = _measured(setup.job, outcome, num_steps)
        results.append(measured)
        say(f"{_workers(measured.workers)}: {measured.images_per_s:.1f} images/s{_doubt(measured)}")
    return results


def _setup(job: Job, loaded: LoadedJob, timed_steps: int) -> Setup:
    """A run that nobody records, without an end of its own and without anything due in it."""
    train = {"images": _NEVER, "epochs": None}
    train |= dict.fromkeys(
        ("log_every", "checkpoint_every", "sample_every", "validate_every"), _NEVER
    )
    endless = job.model_copy(
        update={
            "train": job.train.model_copy(update=train),
            "cluster": job.cluster.model_copy(update={"max_failures": 0}),
        }
    )
    nowhere = RunRef("", "", "")
    name = unique(f"{job.name}-scaling")
    return Setup(name, endless, loaded.render(), nowhere, "", timed_steps=timed_steps)


def _measured(job: Job, outcome: Outcome, num_steps: int) -> Measured:
    kept = tuple(tuple(rank[WARM_UP : WARM_UP + num_steps]) for rank in outcome.times)
    workers = job.cluster.max_workers
    if len(kept) != workers or any(len(rank) < num_steps for rank in kept):
        raise EnvironmentProblem(f"the run with {_workers(workers)} ended early; try again")
    return Measured(workers, job.train.batch_size, kept)


def _doubt(measured: Measured) -> str:
    """What to think of steps that are unlike."""
    mean_s, median_s = measured.step_s, measured.median_step_s
    if mean_s < UNSTEADY * median_s:
        return ""
    return (
        f", but a step took {1000 * mean_s:.0f} ms in the mean and {1000 * median_s:.0f} in the "
        "median: other work on these machines, or data that come in bursts; measure again"
    )


def _workers(number: int) -> str:
    return f"{number} worker" if number == 1 else f"{number} workers"


def write(folder: Path, loaded: LoadedJob, results: Sequence[Measured]) -> None:
    """Write scaling.json and scaling.png. Raises EnvironmentProblem if the folder refuses."""
    about: Mapping[str, object] = {
        "job": loaded.job.name,
        "model": loaded.job.model.name,
        "image_size": loaded.job.model.image_size,
        "overrides": [o for o in loaded.overrides if not o.startswith("cluster.workers=")],
        "driver": {"cpus": os.cpu_count(), "machine": platform.machine()},
        "warm_up_steps": WARM_UP,
    }
    text = json.dumps({**about, "results": to_json(results)}, indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling.json").write_text(f"{text}\n")
        (folder / "scaling.png").write_bytes(to_png(scaling_figure(loaded.job.name, results)))
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} cannot be written: {error.strerror or error}; give another --output"
        ) from error
