"""The command line: parse arguments, call the packages, print results.

Results go to stdout and messages for the user to stderr. Torch, Ray and MLflow are imported by the
commands that need them, so that `orchestrator --help` is fast.
"""

from typing import Annotated

import typer

from orchestrator.cli import (
    checkpoints,
    data,
    doctor,
    evaluate,
    export,
    gate,
    manifest,
    models,
    relocate,
    run,
    sample,
    scaling,
    serve,
    stack,
    sweep,
    tracking,
    verify,
)
from orchestrator.cli.failures import Commands, run_command
from orchestrator.cli.job_file import load
from orchestrator.cli.output import (
    AsJson,
    print_command_note,
    print_json,
    print_next_steps,
    print_result,
    quote,
)
from orchestrator.cli.run import JobPath, Overrides, count_gpus
from orchestrator.console import log_info
from orchestrator.distribution import installed_version

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train generative image models on a Ray cluster from one YAML file.",
)
for command in (run.run, run.submit, manifest.manifest, doctor.doctor, scaling.scaling):
    app.command()(command)
for command in (verify.verify_resume, sample.sample, stack.up, stack.down, stack.status):
    app.command()(command)
app.command()(relocate.relocate)
app.command()(evaluate.evaluate)
app.command()(serve.serve)
for command in (gate.show, gate.compare, gate.promote, gate.rollback, export.export):
    models.app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(sweep.app, name="sweep")
app.add_typer(models.app, name="models")
app.add_typer(tracking.app, name="tracking")


def _print_version(wanted: bool) -> None:
    if wanted:
        version = installed_version()
        unknown = "orchestrator, version unknown: the package is not installed"
        print_result(unknown if version is None else f"orchestrator {version}")
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

    loaded = load(job, overrides)
    if resolved:
        print_result(loaded.render().rstrip())
    log_info(f"{job}: ok")
    print_command_note(job)
    print_next_steps(f"orchestrator plan {quote(job)}", f"orchestrator run {quote(job)}")


@app.command()
def plan(job: JobPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a job would do, without starting it: resources, steps, sizes, paths."""
    from orchestrator.diagnostics.plan import make_plan

    loaded = load(job, overrides)
    made = make_plan(loaded, count_gpus(loaded.job))
    print_result(made.json() if as_json else made.render())
    print_command_note(job)
    print_next_steps(f"orchestrator doctor {quote(job)}", f"orchestrator run {quote(job)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for completion and checks in editors."""
    from orchestrator.config.json_schema import job_schema

    print_json(job_schema())


def main() -> None:
    """Run the command line and exit; ``failures`` has the exit codes of errors."""
    run_command(app)
