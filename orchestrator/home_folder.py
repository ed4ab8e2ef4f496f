"""Expand ``~`` in paths, with an error that a user understands."""

from pathlib import Path

from orchestrator.errors import UsageError


def expand_home(path: str | Path) -> Path:
    """Return ``path`` with ``~`` and ``~user`` expanded.

    Raises:
        UsageError: this machine has no such user, or no home folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise UsageError(
            f"{path}: {user} is not the home folder of a user on this machine; write the full path"
        ) from error
