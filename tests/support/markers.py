"""Markers of tests that start a Ray cluster or a server: set, and checked.

`make test-fast` leaves these tests out. A test gets its marker from the fixture that it uses, or
sets it; one that starts such a process without its marker fails.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

MARKER_OF_FIXTURE = {
    "running_s3": "server", "running_mlflow": "server", "running_azurite": "server",
    "chromium": "server",
}  # fmt: skip
MARKER_OF_COMMAND = {
    ("gcs_server",): "ray",
    ("raylet",): "ray",
    ("ray", "start"): "ray",
    ("orchestrator", "run"): "ray",  # except with --local
    ("mlflow", "server"): "server",
    ("weed",): "server",
    ("azurite-blob",): "server",
    ("pg_ctl",): "server",
    ("prometheus",): "server",
}
"""Consecutive arguments of a command, without folders, and the marker that it needs."""

_running: list[pytest.Item] = []
"""The test that is running, if any."""


def add_markers(items: list[pytest.Item]) -> None:
    """Mark each test that uses a fixture that starts a server, also indirectly."""
    for item in items:
        for fixture in MARKER_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKER_OF_FIXTURE[fixture])


def guard_commands() -> None:
    """Check the commands that this process starts from now on."""
    sys.addaudithook(_check)


def watch(item: pytest.Item) -> None:
    """Check commands against the markers of ``item`` from now on."""
    _running[:] = [item]


def marker_needed(command: list[str]) -> str | None:
    """Return the marker that a test needs to run ``command``."""
    if Path(command[0]).name in ("sh", "bash"):  # it may run what a test put on the path instead
        return None
    if "--local" in command:
        return None
    names = [Path(argument).name for argument in command]
    for wanted, marker in MARKER_OF_COMMAND.items():
        starts = range(len(names) - len(wanted) + 1)
        if any(tuple(names[at : at + len(wanted)]) == wanted for at in starts):
            return marker
    return None


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "subprocess.Popen" or not _running:
        return
    command = arguments[1]
    if isinstance(command, str | bytes | Path):
        return
    marker = marker_needed([str(argument) for argument in command])
    if marker is not None and _running[0].get_closest_marker(marker) is None:
        pytest.fail(f"{command[0]} needs a marker: mark this test with pytest.mark.{marker}")
