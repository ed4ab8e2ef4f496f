"""The commands: parse, call, print.

Data goes to stdout and words for a person to stderr. Torch, Ray and MLflow are imported when a
command needs them, so that `orchestrator --help` answers at once.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands import checkpoints, data, models, sweeps, training, verifying
from orchestrator.commands import manifest as manifests
from orchestrator.commands.output import give, suggest, table
from orchestrator.commands.training import JobPath, Overrides
from orchestrator.errors import EnvironmentProblem, JobFileError, OrchestratorError
from orchestrator.progress import say

if TYPE_CHECKING:
    from orchestrator.doctor import Needs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train generative image models on a Ray cluster from one YAML file.",
)
app.command()(training.run)
app.command()(training.submit)
app.command()(manifests.manifest)
app.command("verify-resume")(verifying.verify_resume)
app.add_typer(data.app, name="data")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(sweeps.app, name="sweep")
app.add_typer(models.app, name="models")
app.command()(models.sample)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.command()
def validate(
    job: JobPath,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the job with all defaults filled in.")
    ] = False,
) -> None:
    """Check a job file, and name every mistake in it."""
    from orchestrator.jobfile import load_job

    loaded = load_job(job, overrides or ())
    if resolved:
        give(loaded.render().rstrip())
    say(f"{job}: ok")
    suggest(f"orchestrator plan {job}", f"orchestrator run {job}")


@app.command()
def plan(job: JobPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a job would do: resources, steps, sizes and places. Starts nothing."""
    from orchestrator.jobfile import load_job
    from orchestrator.plan import make_plan

    made = make_plan(load_job(job, overrides or ()))
    give(made.json() if as_json else made.render())
    suggest(f"orchestrator doctor {job}", f"orchestrator run {job}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, by which an editor completes and checks them."""
    from orchestrator.jobfile.schema import schema as job_schema

    give(json.dumps(job_schema(), indent=2))


@app.command()
def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB]", help="Check what this job needs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, its cluster, tracking server and storage; exit code 3 if one fails."""
    from orchestrator.doctor import Needs, diagnose

    checks = diagnose(Needs() if job is None else _needs(job))
    if as_json:
        give(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        give(table([(check.status, check.name, check.found) for check in checks]))
        for check in checks:
            if check.remedy:
                say(f"{check.name}: {check.remedy}")
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise EnvironmentProblem(f"not ready: {', '.join(failed)}; do what is said above")
    suggest(f"orchestrator run {job or 'jobs/quickstart.yaml'}")


def _needs(job: Path) -> "Needs":
    from orchestrator.doctor import Needs
    from orchestrator.jobfile import load_job
    from orchestrator.places import resolve_places

    loaded = load_job(job)
    places = resolve_places(loaded.job)
    return Needs(
        places.tracking.uri,
        places.storage,
        places.cluster.gpus_per_worker,
        loaded.shown("tracking", "uri"),
        loaded.shown("storage"),
    )


def main() -> None:
    """Run the command line; an OrchestratorError becomes words and its exit code."""
    try:
        app()
    except OrchestratorError as error:
        mistakes = str(error).count("\n") + 1 if isinstance(error, JobFileError) else 1
        say(f"error: {error}" if mistakes == 1 else f"error: {mistakes} mistakes\n{error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
