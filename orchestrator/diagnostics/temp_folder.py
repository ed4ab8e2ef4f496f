"""The folder in which Ray keeps the sockets and logs of a cluster that a job starts for itself."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.errors import EnvironmentProblem
from orchestrator.private_folder import MAX_RAY_FOLDER_BYTES

MIN_FREE_BYTES = 1 << 20
"""Space without which Ray cannot even start to write its logs."""
SHORT_PARENTS = ("/tmp", "/var/tmp", "/dev/shm")


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder that Ray uses by default."""
    return Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp", "ray")


def find_problem(folder: Path) -> str:
    """Return why Ray cannot keep its files in ``folder``; "" if it can."""
    length = len(os.fsencode(folder))
    if length > MAX_RAY_FOLDER_BYTES:
        return f"its path has {length} bytes, and Ray's sockets need at most {MAX_RAY_FOLDER_BYTES}"
    existing = folder if folder.is_dir() else folder.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(MIN_FREE_BYTES))
    except OSError as error:
        return f"{existing}: {error.strerror}"
    return ""


@contextlib.contextmanager
def private_folder() -> Iterator[str | None]:
    """Yield a short private folder for Ray, or None if its default one works.

    A batch system's TMPDIR is often too long.

    Raises:
        EnvironmentProblem: no folder is writable, or the disk is full.
    """
    default = default_folder(os.environ)
    problem = find_problem(default)
    if not problem:
        yield None
        return
    if problem.endswith(os.strerror(errno.ENOSPC)):  # Ray's processes write to TMPDIR too
        raise EnvironmentProblem(f"{problem}; free up space, or set TMPDIR to another folder")
    with _make_folder(default, problem) as folder:
        yield folder


def _make_folder(default: Path, problem: str) -> "tempfile.TemporaryDirectory[str]":
    for parent in SHORT_PARENTS:
        # Not ray itself, which may belong to another user: the private folder is beside it.
        if not find_problem(Path(parent, "ray-private")):
            return tempfile.TemporaryDirectory("", "ray-", parent, ignore_cleanup_errors=True)
    raise EnvironmentProblem(
        f"Ray cannot keep its files in {default} ({problem}), nor in {', '.join(SHORT_PARENTS)}; "
        f"set RAY_TMPDIR to a writable folder of at most {MAX_RAY_FOLDER_BYTES - len('/ray')} bytes"
    )
