"""The text of a file that a user named, or what is wrong with that."""

import difflib
from pathlib import Path

from orchestrator.errors import JobFileError

MAX_BYTES = 1 << 20


def read_text(path: Path) -> str:
    """The text of the file at ``path``, or a JobFileError that says what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise JobFileError(
            f"{path}: there is no such file{_nearest(path.parent, path.name)}"
        ) from None
    except IsADirectoryError:
        raise JobFileError(
            f"{path}: is a folder; name a job file in it{_nearest(path, '')}"
        ) from None
    except PermissionError:
        raise JobFileError(f"{path}: may not be read; run `chmod u+r {path}`") from None
    except (OSError, ValueError) as error:
        raise JobFileError(f"{path}: cannot be read ({error}); check the path") from None
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{path}: is larger than 1 MiB, so it is no job file; check the path")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data[: error.start].rfind(b"\n")
        raise JobFileError(
            f"{path}:{line}:{column}: byte {data[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _nearest(folder: Path, name: str) -> str:
    """A hint at the job file in ``folder`` that was probably meant."""
    try:
        names = sorted(path.name for path in folder.glob("*.yaml"))
    except OSError:
        names = []
    wanted = [name, f"{name}.yaml"] if name else []
    close = [n for w in wanted for n in difflib.get_close_matches(w, names, n=1, cutoff=0.5)]
    if close:
        return f"; did you mean {folder / close[0]}?"
    return f"; {folder} has: {', '.join(names[:8])}" if names else "; check the path"
