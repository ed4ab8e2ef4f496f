"""``orchestrator verify-resume``: whether a training goes on exactly where it was broken off."""

from typing import Annotated

import typer

from orchestrator.cli.output import give, suggest, table
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import say
from orchestrator.errors import TrainingFailed, UsageError


def verify_resume(
    job: JobPath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=3, help="Length of each training in steps.")] = 16,
    at: Annotated[
        int | None,
        typer.Option(min=1, help="Images after which to interrupt; by default over half of all."),
    ] = None,
    faults: Annotated[
        int,
        typer.Option(
            min=0,
            help="Run the job as a user does, through so many faults: workers, rank 0, Ray's "
            "controller and the driver killed, crashed or stopped. --steps and --at do not count.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws the faults.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Train a job's first steps whole and interrupted, and compare every bit; exit code 5 if not.

    Runs on this machine, on as many processes as the job has workers. Writes nothing to the job's
    storage or to MLflow.
    """
    from orchestrator.config.load import load_job
    from orchestrator.config.paths import resolve_places
    from orchestrator.data.datasets.sources import ensure_data
    from orchestrator.diagnostics.fault_run import drill
    from orchestrator.diagnostics.resume_check import certify, shortened

    loaded = load_job(job, overrides or ())
    places = resolve_places(loaded.job)
    short = shortened(places, steps)
    size = short.train.batch_size
    images = at if at is not None else (steps * 5 // 8) * size + 1
    if images >= (steps - 1) * size:
        raise UsageError(
            f"--at {images} leaves nothing to go on with: {steps} steps of {size} images are "
            f"{steps * size}; use at most {(steps - 1) * size - 1}, or more --steps"
        )
    ensure_data(places.data, say)
    if faults:
        made = drill(job, overrides or (), places, faults, seed, say)
    else:
        made = certify(short, images, say)
    give(made.json() if as_json else table(made.rows()))
    if not made.equal:
        raise TrainingFailed("the interrupted training ended elsewhere; the table says where")
    say(
        f"{made.model} on {made.workers} workers, {made.images:,} images: every bit is the same "
        "as without an interruption"
    )
    suggest(f"orchestrator run {job}")
