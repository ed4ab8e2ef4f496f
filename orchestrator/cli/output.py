"""Output of the commands: results to stdout, messages to stderr."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.config.job_command import command_note
from orchestrator.console import log_info
from orchestrator.redaction import mask

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LINE_INTERVAL_S = 5.0


def print_result(text: str) -> None:
    """Print ``text`` to stdout now, without credentials.

    An error, such as a full disk, ends the command.
    """
    sys.stdout.write(f"{mask(text)}\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print ``value`` to stdout as JSON; objects such as dates are printed as text."""
    print_result(json.dumps(value, indent=2, default=str))


def print_next_steps(*commands: str) -> None:
    """Print commands that are useful next, to stderr; ``quote`` the arguments in them."""
    log_info("\n  ".join(("next:", *commands)))


def quote(argument: object) -> str:
    """Quote an argument of a printed command for the shell."""
    return shlex.quote(str(argument))


def print_command_note(job: Path) -> None:
    """Tell on stderr if the job file ``job`` cannot be run as a command."""
    if (note := command_note(job)) is not None:
        log_info(f"note: {note}")


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format ``rows`` as left-aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


@contextmanager
def progress_counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback for (done, total): a bar on a terminal, else a line every 5 s."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last >= LINE_INTERVAL_S:
            last = time.monotonic()
            log_info(f"{what}: {done:,} of {total:,}")

    yield line
