"""``orchestrator verify-resume``: check that a run resumes exactly where it was interrupted."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.job_file import load
from orchestrator.cli.output import AsJson, format_table, print_next_steps, print_result, quote
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import log_info
from orchestrator.errors import TrainingFailed, UsageError

if TYPE_CHECKING:
    from orchestrator.config.job import Job

STEPS = 16


def verify_resume(
    job: JobPath,
    overrides: Overrides = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=3,
            help=f"Steps of each run [{STEPS}], or with --faults steps for each fault [150].",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Interrupt after this many images; by default a little after half of them.",
            show_default=False,
        ),
    ] = None,
    faults: Annotated[
        int,
        typer.Option(
            min=0,
            help="Instead, run the job as `orchestrator run` does, with an S3 and an MLflow server "
            "of its own, and inject this many faults: into workers, the driver, Ray, checkpoints "
            "and both servers.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed for the choice and order of faults.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Interrupt and resume a short run of a job; compare every bit with an uninterrupted run.

    Runs on this machine, on as many processes as the job has workers. Writes
    nothing to the job's storage or to MLflow. Exit code 5 if a result differs.
    """
    from orchestrator.data.datasets.sources import ensure_data
    from orchestrator.diagnostics.resume_check import ResumeReport, check_resume, shorten_job
    from orchestrator.faults.report import FaultReport
    from orchestrator.faults.run import STEPS_PER_FAULT, run_with_faults
    from orchestrator.runs.driver import local_gpus
    from orchestrator.runs.resolved_job import resolve_job

    if faults and at is not None:
        raise UsageError("--at is for one interruption and --faults for many; use one of them")
    loaded = load(job, overrides)
    with local_gpus(loaded.job) as num_gpus:
        resolved = resolve_job(loaded).with_gpus(num_gpus).job
    after_images = 0 if faults else _interruption(resolved, steps or STEPS, at)
    ensure_data(resolved.data, log_info)
    report: FaultReport | ResumeReport
    if faults:
        steps = steps or STEPS_PER_FAULT
        report = run_with_faults(job, overrides or (), resolved, faults, seed, log_info, steps)
    else:
        short = shorten_job(resolved, steps or STEPS)
        report = check_resume(short, after_images, log_info)
    tables = "\n\n".join(map(format_table, report.tables()))
    print_result(report.json() if as_json else tables)
    if not report.equal:
        raise TrainingFailed(
            "an interrupted run ended in another state; the result above shows the differences"
        )
    log_info(
        f"{report.model} with {report.workers} workers, {report.images:,} images: the interrupted "
        "runs are bit-identical to the uninterrupted run"
    )
    print_next_steps(f"orchestrator run {quote(job)}")


def _interruption(job: "Job", steps: int, at: int | None) -> int:
    """Return the number of images after which a run is interrupted. Raises UsageError."""
    size = job.train.batch_size
    after_images = at if at is not None else (steps * 5 // 8) * size + 1
    if after_images >= (steps - 1) * size:
        raise UsageError(
            f"--at {after_images} leaves nothing to resume: {steps} steps of {size} images are "
            f"{steps * size}; use at most {(steps - 1) * size - 1}, or more --steps"
        )
    return after_images
