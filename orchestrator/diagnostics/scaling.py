"""Measure throughput: time short runs of a job with different numbers of workers."""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orchestrator.config.job import Job
from orchestrator.config.load import LoadedJob, load_job
from orchestrator.console import log_info
from orchestrator.data.datasets.sources import ensure_data
from orchestrator.data.loading.training_set import open_training_sets
from orchestrator.diagnostics.scaling_figure import scaling_figure
from orchestrator.diagnostics.scaling_results import ScalingResult, to_json
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.report.drawing import to_png
from orchestrator.runs.driver import unique_name
from orchestrator.runs.resolved_job import ResolvedJob, resolve_job
from orchestrator.runs.run_context import RunContext
from orchestrator.tracking import RunRef
from orchestrator.training.loop import Outcome

WARMUP_STEPS = 5
"""Steps that are not timed: the first ones allocate, compile and fill the prefetch memory."""
DEFAULT_STEPS = 40
MAX_MEAN_TO_MEDIAN = 1.2
"""Ratio of the mean step time to the median above which a measurement is reported as noisy."""
_NEVER = 10**12
"""More images than any run sees."""


def load_jobs(path: Path, overrides: Sequence[str], workers: Sequence[int]) -> list[LoadedJob]:
    """Load the job with each number of workers; a sweep is timed as a single run."""
    return [load_job(path, (*overrides, "sweep=null", f"cluster.workers={n}")) for n in workers]


def parse_workers(text: str) -> list[int]:
    """Parse "1,2,4" to a sorted list. Raises UsageError if it is not valid."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        expected = "not a list of positive integers; use for example 1,2,4"
        raise UsageError(f"--workers {text}: {expected}")
    return sorted({int(part) for part in parts})


def measure_scaling(
    loaded: Sequence[LoadedJob],
    images: int | None,
    train_each: Callable[[Sequence[RunContext]], Iterator[tuple[RunContext, Outcome]]],
) -> list[ScalingResult]:
    """Time the steps of each job, one after the other. The runs leave nothing behind.

    Args:
        loaded: the same job with different numbers of workers.
        images: images per run after the warm-up; by default 40 batches.
        train_each: runs the jobs one after the other: cluster.scaling_runs.train_each.

    Raises:
        EnvironmentProblem: the cluster is too small for one of the jobs; none was started.
        OrchestratorError: a run failed.
    """
    resolved = [resolve_job(each) for each in loaded]
    data, batch_size = resolved[0].job.data, resolved[0].job.train.batch_size
    ensure_data(data, log_info)
    num_samples = open_training_sets(data).num_samples
    num_steps = DEFAULT_STEPS if images is None else math.ceil(images / batch_size)
    contexts = [_make_context(each, WARMUP_STEPS + num_steps) for each in resolved]
    log_info(
        f"timing {num_steps} steps of {batch_size} images for each number of workers, after "
        f"{WARMUP_STEPS} warm-up steps; the data set has {num_samples:,} images"
    )
    results = []
    for context, outcome in train_each(contexts):
        results.append(result := _to_result(context.job, outcome, num_steps))
        speed = f"{result.images_per_s:.1f} images/s{_noise_warning(result)}"
        log_info(f"{_workers(result.workers)}: {speed}")
    return results


def _make_context(resolved: ResolvedJob, timed_steps: int) -> RunContext:
    """Make an endless, untracked run without checkpoints, validations or samples."""
    job = resolved.job
    intervals = ("images", "log_every", "checkpoint_every", "sample_every", "validate_every")
    train = {**dict.fromkeys(intervals, _NEVER), "epochs": None}
    sections = {
        "train": job.train.model_copy(update=train),
        "cluster": job.cluster.model_copy(update={"max_failures": 0}),
    }
    endless, untracked = job.model_copy(update=sections), RunRef("", "", "")
    name = unique_name(f"{job.name}-scaling")
    return RunContext(name, endless, resolved.rendered, untracked, "", timed_steps=timed_steps)


def _to_result(job: Job, outcome: Outcome, num_steps: int) -> ScalingResult:
    kept = tuple(tuple(rank[WARMUP_STEPS : WARMUP_STEPS + num_steps]) for rank in outcome.times)
    workers = job.cluster.max_workers
    if len(kept) != workers or any(len(rank) < num_steps for rank in kept):
        raise EnvironmentProblem(f"the run with {_workers(workers)} ended too early; try again")
    return ScalingResult(workers, job.train.batch_size, kept)


def _noise_warning(result: ScalingResult) -> str:
    mean_s, median_s = result.mean.step_s, result.median_step_s
    if mean_s < MAX_MEAN_TO_MEDIAN * median_s:
        return ""
    return (
        f"; noisy: a step took {1000 * mean_s:.0f} ms on average, with a median of "
        f"{1000 * median_s:.0f} ms; other processes or bursts of data disturbed it: measure again"
    )


def _workers(number: int) -> str:
    return f"{number} worker" if number == 1 else f"{number} workers"


def write_results(folder: Path, loaded: LoadedJob, results: Sequence[ScalingResult]) -> None:
    """Write scaling.json and scaling.png. Raises EnvironmentProblem if that fails."""
    content = {
        "job": loaded.job.name,
        "model": loaded.job.model.name,
        "image_size": loaded.job.model.image_size,
        "overrides": [o for o in loaded.overrides if not o.startswith("cluster.workers=")],
        "driver": {"cpus": os.cpu_count(), "machine": platform.machine()},
        "warmup_steps": WARMUP_STEPS,
        "results": to_json(results),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "scaling.png").write_bytes(to_png(scaling_figure(loaded.job.name, results)))
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write to {folder}: {error.strerror or error}; use another --output"
        ) from error
