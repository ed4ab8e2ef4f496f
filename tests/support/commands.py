"""All commands of the command line, so that a new one cannot be left out of a test."""

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from orchestrator.cli import app


def all_commands() -> dict[tuple[str, ...], Any]:
    """Every command by the words that name it, with its parameters."""
    return dict(_below(get_command(app.app), ()))


def _below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _below(child, (*path, name))
