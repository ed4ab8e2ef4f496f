"""The command line: parse arguments, call the packages, print results.

Results go to stdout and messages for the user to stderr. Torch, Ray and MLflow are imported by the
commands that need them, so that `orchestrator --help` is fast.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from orchestrator.cli import (
    checkpoints,
    data,
    doctor,
    manifest,
    models,
    run,
    scaling,
    stack,
    sweep,
    verify,
)
from orchestrator.cli.failures import run_command
from orchestrator.cli.output import AsJson, print_json, print_next_steps, print_result
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import log_info

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train generative image models on a Ray cluster from one YAML file.",
)
for command in (run.run, run.submit, manifest.manifest, doctor.doctor, scaling.scaling):
    app.command()(command)
for command in (verify.verify_resume, models.sample, stack.up, stack.down, stack.status):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(sweep.app, name="sweep")
app.add_typer(models.app, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            print_result(f"orchestrator {version('orchestrator')}")
        except PackageNotFoundError:  # only on sys.path, as in the container image
            print_result("orchestrator, version unknown: the package is not installed")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Handle options before the command."""


@app.command()
def validate(
    job: JobPath,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the job with all defaults filled in.")
    ] = False,
) -> None:
    """Check a job file and report all its mistakes."""
    from orchestrator.config.load import load_job

    loaded = load_job(job, overrides or ())
    if resolved:
        print_result(loaded.render().rstrip())
    log_info(f"{job}: ok")
    print_next_steps(f"orchestrator plan {job}", f"orchestrator run {job}")


@app.command()
def plan(job: JobPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a job would do, without starting it: resources, steps, sizes, paths."""
    from orchestrator.config.load import load_job
    from orchestrator.diagnostics.plan import make_plan

    made = make_plan(load_job(job, overrides or ()))
    print_result(made.json() if as_json else made.render())
    print_next_steps(f"orchestrator doctor {job}", f"orchestrator run {job}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for completion and checks in editors."""
    from orchestrator.config.json_schema import job_schema

    print_json(job_schema())


def main() -> None:
    """Run the command line and exit; see ``failures`` for the exit codes of errors."""
    run_command(app)
