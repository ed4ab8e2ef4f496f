"""Read a file that a user named."""

import difflib
import os
import select
import shlex
from pathlib import Path

from orchestrator.errors import JobFileError

MAX_BYTES = 1 << 20
PIPE_S = 10
"""For the first byte of a job that is piped in."""


def read_text(path: Path) -> str:
    """Return the text of the file at ``path``; raise JobFileError if it cannot be read."""
    try:
        with open(path, "rb", opener=_open_pipe if path.is_fifo() else None) as file:
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


def _open_pipe(path: str, flags: int) -> int:
    """Open a pipe once there is something to read; raise JobFileError if nobody writes to it."""
    pipe = os.open(path, flags | os.O_NONBLOCK)
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    if not ready.poll(PIPE_S * 1000):
        os.close(pipe)
        raise JobFileError(f"{path}: is a pipe, and nothing came in {PIPE_S} s; give a file")
    os.set_blocking(pipe, True)
    return pipe


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
