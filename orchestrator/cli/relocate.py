"""``orchestrator relocate``: correct MLflow's places after a folder was moved or copied."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result, quote
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.home_folder import expand_home


def relocate(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the database (mlflow.db), or the database itself.")
    ] = Path(),
    old: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="OLD",
            help="Where the folder was; by default found in the database.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the new places and change nothing.")
    ] = False,
) -> None:
    """Correct MLflow's places of files after its folder was moved, renamed or copied.

    A SQLite file of MLflow has the places of its files as absolute paths, so that new runs would
    write to the old folder. This changes them to the folder in which the database is now, in one
    transaction, and keeps a backup beside it. The old folder is not touched. Runs, sweeps and the
    stack of `orchestrator up` need no change, nor does an MLflow server.
    """
    from orchestrator.tracking.places import apply_relocation, find_databases, find_relocation

    databases = find_databases(expand_home(folder).absolute())
    if not databases:
        raise UsageError(
            f"there is no SQLite file of MLflow in {folder.absolute()}; give the folder of your "
            "mlflow.db; an MLflow server has its places itself, and needs no change"
        )
    if old is not None and not old.is_absolute():
        raise UsageError(f"--from {old} is not absolute; give the full path of the old folder")
    for database in databases:
        found = find_relocation(database, None if old is None else [old])
        for kept in found.elsewhere:
            log_info(f"{kept}: these files are only there; the database keeps this place")
        if not found.changes:
            log_info(f"{database}: nothing to change")
            continue
        origin = " and ".join(str(each) for each in found.old_folders)
        what = f"{database}: {len(found.changes)} places from {origin}"
        if dry_run:
            for table, column, _, place in found.changes:
                print_result(f"{table}.{column}  {place}")
            log_info(f"{what} would change")
            continue
        backup = apply_relocation(found)
        log_info(f"{what} changed; the database as it was: {backup}")
    if dry_run:
        option = "" if old is None else f" --from {quote(old)}"
        print_next_steps(f"orchestrator relocate {quote(folder)}{option}")
