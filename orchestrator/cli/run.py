"""``orchestrator run`` and ``orchestrator submit``: train a job here or on a cluster."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.job_file import load
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.job import Job

JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="Job file, such as jobs/x.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value: --set train.batch_size=32. Repeatable.",
    ),
]

Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Resume the newest unfinished run of this job from its newest checkpoint, or start "
        "a run if there is none; --no-resume always starts a new run. By default only an orphaned "
        "run, whose driver died, is resumed.",
        show_default=False,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Start a new run from a checkpoint of another run: STORAGE/RUN or "
        "STORAGE/RUN/checkpoints/NAME. The settings of this job apply, such as learning rates.",
    ),
]
RestartFromScratch = Annotated[
    bool,
    typer.Option(
        "--restart-from-scratch",
        help="If all checkpoints of the resumed run are damaged or gone, start it again at image "
        "0, which is refused otherwise.",
    ),
]


def count_gpus(job: "Job") -> int | None:
    """Count the GPUs that ``job`` may use: those of this machine, or of the cluster.

    None if RAY_ADDRESS names a cluster that cannot be asked from here.
    """
    from orchestrator.errors import EnvironmentProblem
    from orchestrator.runs.driver import local_gpus

    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        with local_gpus(job) as num_gpus:
            return num_gpus
    if address.startswith(
        ("http://", "https://")
    ):  # the Jobs API, to which ray.init cannot connect
        return None
    from orchestrator.cluster.ray_session import cluster_gpus

    try:
        with cluster_gpus(job) as num_gpus:
            return num_gpus
    except EnvironmentProblem:
        return None


def run(
    job: JobPath,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process with one worker, without Ray.")
    ] = False,
    resume: Resume = None,
    init_from: InitFrom = None,
    restart_from_scratch: RestartFromScratch = False,
) -> None:
    """Train a job on the Ray cluster at RAY_ADDRESS, or on a local one started for it.

    A job with a `sweep:` section runs a hyperparameter search instead.
    """

    loaded = load(job, overrides)
    if loaded.job.sweep is None:
        from orchestrator.runs.driver import run_job

        run_it = partial(
            run_job,
            loaded,
            resume=resume,
            init_from=init_from,
            restart_from_scratch=restart_from_scratch,
        )
        if local:
            run_it()
        else:
            from orchestrator.cluster.ray_process import RayProcess

            with RayProcess() as ray_process:
                run_it(ray_process.train, gpus=ray_process.gpus)
        return
    from orchestrator.sweeps.driver import run_sweep

    given = {
        "--local": local,
        "--init-from": init_from is not None,
        "--restart-from-scratch": restart_from_scratch,
    }
    if option := next((name for name, is_given in given.items() if is_given), None):
        raise UsageError(
            f"{option} is for a single run, and {job} is a sweep; use --set sweep=null to train it "
            "once"
        )
    from orchestrator.cluster.ray_process import RayProcess

    with RayProcess() as ray_process:
        run_sweep(loaded, ray_process.run_trials, resume=resume, gpus=ray_process.gpus)


def submit(  # noqa: PLR0913, PLR0917 - the options of one command
    job: Annotated[str, typer.Argument(metavar="JOB", help="Path of the job file on the cluster.")],
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="Cluster, http://HOST:8265; by default RAY_ADDRESS or this machine."),
    ] = None,
    working_dir: Annotated[
        str | None, typer.Option(help="Folder to upload, except files listed in its .rayignore.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job and exit with its exit code.")
    ] = True,
    resume: Resume = None,
    init_from: InitFrom = None,
    restart_from_scratch: RestartFromScratch = False,
) -> None:
    """Train a job on a running cluster, follow it, and exit with the driver's exit code."""
    from orchestrator.cluster.job_submission import submit as submit_job

    options = [part for override in overrides or () for part in ("--set", override)]
    if resume is not None:
        options.append("--resume" if resume else "--no-resume")
    if init_from is not None:
        options += ["--init-from", init_from]
    if restart_from_scratch:
        options.append("--restart-from-scratch")
    code = submit_job(job, options, address=address, working_dir=working_dir, wait=wait)
    raise typer.Exit(code)
