"""``orchestrator up``, ``down`` and ``status``: Ray, MLflow and S3 on this machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result, table
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem

if TYPE_CHECKING:
    from orchestrator.local_stack.control import ServiceStatus

Folder = Annotated[
    Path, typer.Option("--folder", help="Where the stack keeps its state, secrets, logs and data.")
]
DEFAULT = Path(".orchestrator/stack")


def up(
    folder: Folder = DEFAULT,
    num_cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPUs that Ray gives away; by default as last time, or all.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start Ray, MLflow and S3 storage on this machine, or what is missing of them.

    All listen on 127.0.0.1 alone and ask for a token, a password or a signature.
    """  # fmt: skip
    from orchestrator.local_stack.control import up as start

    found = start(folder, Path.cwd(), num_cpus)
    _print(found)
    print_next_steps(
        f"source {folder}/env",
        "orchestrator data fetch openmoji s3://data/openmoji-64 --size 64",
        "orchestrator submit jobs/quickstart.yaml",
        f"orchestrator down{_option(folder)}",
    )


def down(
    folder: Folder = DEFAULT,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the folder too: data, runs, models, secrets.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --delete.")] = False,
) -> None:
    """Stop the stack with its jobs; what it has stored stays, unless --delete."""
    from orchestrator.local_stack.control import down as stop
    from orchestrator.local_stack.control import open_stack

    open_stack(folder)
    if delete and not yes:
        typer.confirm(f"delete {folder} with all data, runs and models in it?", abort=True)
    stop(folder, delete=delete)
    if delete:
        log_info(f"deleted {folder}")
        return
    log_info(f"data, runs and models are kept in {folder}")
    print_next_steps(
        f"orchestrator up{_option(folder)}", f"orchestrator down --delete{_option(folder)}"
    )


def status(
    folder: Folder = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Show what runs of the stack and where; exit code 3 if not all of it does."""
    from orchestrator.local_stack.control import open_stack
    from orchestrator.local_stack.control import status as look

    found = look(open_stack(folder))
    if as_json:
        print_result(json.dumps([asdict(service) for service in found], indent=2))
    else:
        _print(found)
    bad = [service.name for service in found if service.state != "running"]
    if bad:
        raise EnvironmentProblem(
            f"not running: {', '.join(bad)}; start what is missing: orchestrator up"
            + _option(folder)
        )
    print_next_steps(f"source {folder}/env", "orchestrator submit jobs/quickstart.yaml")


def _print(found: "Sequence[ServiceStatus]") -> None:
    print_result(table([(service.name, service.state, service.address) for service in found]))
    for service in found:
        log_info(f"{service.name}: {service.login}")


def _option(folder: Path) -> str:
    return "" if folder == DEFAULT else f" --folder {folder}"
