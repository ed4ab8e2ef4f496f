"""Expand ``~`` in paths, with an error that a user understands."""

import socket
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.redaction import mask


def expand_home(path: str | Path) -> Path:
    """Return ``path`` with ``~`` and ``~user`` expanded.

    Raises UsageError if there is no such home on this machine.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        owner = "this user has no home folder" if name == "~" else f"there is no user {name[1:]}"
        raise UsageError(
            f"{mask(str(path))}: {owner} on {socket.gethostname()}; write the path without {name}"
        ) from error
