"""``orchestrator run`` and ``orchestrator submit``: train a job here, or on a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.runs.driver import Launcher

JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="A job file, such as jobs/x.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value: --set train.batch_size=32. Repeatable."
    ),
]

Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Go on with the newest run of this job that did not finish, from its newest "
        "checkpoint, and start a run if there is none; or start one in any case. By default "
        "only a run whose driver was lost is gone on with.",
        show_default=False,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Start a new run from a checkpoint of another: STORAGE/RUN, or "
        "STORAGE/RUN/checkpoints/NAME. What this job sets counts, such as learning rates.",
    ),
]


def run(
    job: JobPath,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process with one worker, without Ray.")
    ] = False,
    resume: Resume = None,
    init_from: InitFrom = None,
) -> None:
    """Train a job: on the Ray cluster of RAY_ADDRESS, or on one that is started for it here.

    With a `sweep:` block in the job it is a search: many trainings, on the same cluster.
    """
    from orchestrator.config.load import load_job

    loaded = load_job(job, overrides or ())
    if loaded.job.sweep is None:
        from orchestrator.runs.driver import run_job

        run_job(loaded, None if local else _ray_launcher(), resume=resume, init_from=init_from)
        return
    from orchestrator.sweeps.driver import run_sweep

    if local or init_from is not None:
        given = "--local" if local else "--init-from"
        raise UsageError(
            f"{given} is for one training, and {job} is a sweep; --set sweep=null makes it one"
        )
    from orchestrator.cluster.tune_runner import run_trials

    run_sweep(loaded, run_trials, resume=resume)


def _ray_launcher() -> "Launcher":
    from orchestrator.cluster.ray_trainer import train_on_ray

    return train_on_ray


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job file, as the cluster sees it.")],
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster, http://HOST:8265; by default RAY_ADDRESS or this machine."),
    ] = None,
    working_dir: Annotated[
        str | None, typer.Option(help="Folder to upload, less what its .rayignore names.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job and end with its exit code.")
    ] = True,
    resume: Resume = None,
    init_from: InitFrom = None,
) -> None:
    """Train a job on a running cluster, follow it, and end with the driver's exit code."""
    from orchestrator.cluster.job_submission import submit as submit_job

    options = [part for override in overrides or () for part in ("--set", override)]
    if resume is not None:
        options.append("--resume" if resume else "--no-resume")
    if init_from is not None:
        options += ["--init-from", init_from]
    code = submit_job(job, options, address=address, working_dir=working_dir, wait=wait)
    raise typer.Exit(code)
