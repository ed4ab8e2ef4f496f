"""``orchestrator verify-resume``: check that a run resumes exactly where it was interrupted."""

from typing import Annotated

import typer

from orchestrator.cli.job_file import load
from orchestrator.cli.output import AsJson, format_table, print_next_steps, print_result, quote
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import log_info
from orchestrator.errors import TrainingFailed, UsageError


def verify_resume(
    job: JobPath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=3, help="Steps of each run.")] = 16,
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
            help="Instead, run the job as `orchestrator run` does and inject this many faults: "
            "workers, rank 0, Ray's controller and the driver are killed, crashed or suspended. "
            "--steps and --at are ignored.",
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
    from orchestrator.diagnostics.fault_run import run_with_faults
    from orchestrator.diagnostics.resume_check import check_resume, shorten_job
    from orchestrator.runs.driver import local_gpus
    from orchestrator.runs.resolved_job import resolve_job

    loaded = load(job, overrides)
    with local_gpus(loaded.job) as num_gpus:
        resolved = resolve_job(loaded).with_gpus(num_gpus).job
    short = shorten_job(resolved, steps)
    size = short.train.batch_size
    after_images = at if at is not None else (steps * 5 // 8) * size + 1
    if after_images >= (steps - 1) * size:
        raise UsageError(
            f"--at {after_images} leaves nothing to resume: {steps} steps of {size} images are "
            f"{steps * size}; use at most {(steps - 1) * size - 1}, or more --steps"
        )
    ensure_data(resolved.data, log_info)
    if faults:
        report = run_with_faults(job, overrides or (), resolved, faults, seed, log_info)
    else:
        report = check_resume(short, after_images, log_info)
    print_result(report.json() if as_json else format_table(report.rows()))
    if not report.equal:
        raise TrainingFailed(
            "an interrupted run ended in another state; the result above shows the differences"
        )
    log_info(
        f"{report.model} with {report.workers} workers, {report.images:,} images: the interrupted "
        "runs are bit-identical to the uninterrupted run"
    )
    print_next_steps(f"orchestrator run {quote(job)}")
