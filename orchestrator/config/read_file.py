"""Read a file that a user named."""

import difflib
import shlex
from pathlib import Path

from orchestrator.errors import JobFileError

MAX_BYTES = 1 << 20


def read_text(path: Path) -> str:
    """Return the text of the file at ``path``; raise JobFileError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise JobFileError(f"{path}: file not found{_suggest(path.parent, path.name)}") from None
    except IsADirectoryError:
        hint = _suggest(path, "")
        raise JobFileError(f"{path}: is a folder; give a job file in it{hint}") from None
    except PermissionError:
        raise JobFileError(
            f"{path}: permission denied; run `chmod u+r {shlex.quote(str(path))}`"
        ) from None
    except (OSError, ValueError) as error:
        raise JobFileError(f"{path}: cannot be read ({error}); check the path") from None
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{path}: is larger than 1 MiB, so it is not a job file; check the path")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:2]:
        raise JobFileError(f"{path}: is UTF-16 or UTF-32 and not UTF-8; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data[: error.start].rfind(b"\n")
        raise JobFileError(
            f"{path}:{line}:{column}: byte {data[error.start]:#04x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _suggest(folder: Path, name: str) -> str:
    """Return a hint with the job files in ``folder`` that are closest to ``name``."""
    try:
        names = sorted(path.name for path in folder.glob("*.yaml"))
    except OSError:
        names = []
    wanted = [name, f"{name}.yaml"] if name else []
    close = [n for w in wanted for n in difflib.get_close_matches(w, names, n=1, cutoff=0.5)]
    if close:
        return f"; did you mean {folder / close[0]}?"
    return f"; {folder} has: {', '.join(names[:8])}" if names else "; check the path"
