"""``orchestrator up``, ``down`` and ``status``: Ray, MLflow and S3 storage on this machine."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_json,
    print_next_steps,
    print_result,
    quote,
)
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem

if TYPE_CHECKING:
    from orchestrator.local_stack.control import ServiceStatus

Folder = Annotated[
    Path, typer.Option("--folder", help="Folder of the stack's state, secrets, logs and data.")
]
DEFAULT = Path(".orchestrator/stack")


def up(
    folder: Folder = DEFAULT,
    num_cpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPUs that Ray schedules; by default as before, or all.", show_default=False
        ),
    ] = None,
) -> None:
    """Start Ray, MLflow and S3 storage on this machine, unless they are running.

    All listen on 127.0.0.1 only and require a token, a password or a signature.
    """
    from orchestrator.local_stack.control import up as start

    found = start(folder, Path.cwd(), num_cpus)
    _print_status(found)
    print_next_steps(
        f"source {quote(folder / 'env')}",
        "orchestrator data fetch openmoji s3://data/openmoji-64 --size 64",
        "orchestrator submit jobs/quickstart.yaml",
        f"orchestrator down{_option(folder)}",
    )


def down(
    folder: Folder = DEFAULT,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete the folder, too: data, runs, models and secrets."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Stop the stack and its jobs; data, runs and models are kept, unless --delete."""
    from orchestrator.local_stack.control import down as stop
    from orchestrator.local_stack.control import open_stack

    open_stack(folder)
    if delete and not yes:
        typer.confirm(f"delete {folder} with all data, runs and models?", abort=True)
    stop(folder, delete=delete)
    if delete:
        log_info(f"deleted {folder}")
        return
    log_info(f"data, runs and models are kept in {folder}")
    print_next_steps(
        f"orchestrator up{_option(folder)}", f"orchestrator down --delete{_option(folder)}"
    )


def status(folder: Folder = DEFAULT, as_json: AsJson = False) -> None:
    """Show the services of the stack and their addresses; exit code 3 if one is not running."""
    from orchestrator.local_stack.control import open_stack
    from orchestrator.local_stack.control import status as get_status

    found = get_status(open_stack(folder))
    if as_json:
        print_json([asdict(service) for service in found])
    else:
        _print_status(found)
    failed = [service.name for service in found if service.state != "running"]
    if failed:
        raise EnvironmentProblem(
            f"not running: {', '.join(failed)}; start them with `orchestrator up{_option(folder)}`"
        )
    print_next_steps(f"source {quote(folder / 'env')}", "orchestrator submit jobs/quickstart.yaml")


def _print_status(found: "Sequence[ServiceStatus]") -> None:
    print_result(format_table([(each.name, each.state, each.address) for each in found]))
    for service in found:
        log_info(f"{service.name}: {service.login}")


def _option(folder: Path) -> str:
    return "" if folder == DEFAULT else f" --folder {quote(folder)}"
