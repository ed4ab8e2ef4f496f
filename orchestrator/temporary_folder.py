"""A folder for files that are needed for a moment, on a disk that may be full."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import EnvironmentProblem, OrchestratorError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = re.compile(r"No space left on device|Disk quota exceeded|\(os error (28|122)\)")
"""How libraries in other languages name these errors."""


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Make a folder within the block.

    Raises EnvironmentProblem, which names ``purpose``, if its disk is full when the folder is made
    or at any write to it within the block.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="orchestrator-", ignore_cleanup_errors=True)
    except OSError as error:  # also if no folder for temporary files is usable
        raise _no_room(purpose, error.filename, error.strerror or str(error)) from error
    with made as name:
        try:
            yield Path(name)
        except Exception as error:
            if not _is_of_full_disk(error, name):
                raise
            raise _no_room(purpose, name, "its disk is full") from error


def is_full_temporary_disk(error: BaseException) -> bool:
    """Return whether ``error`` is of a write to the folder for temporary files, which is full."""
    return _is_of_full_disk(error, tempfile.gettempdir())


def _is_of_full_disk(error: BaseException | None, folder: str) -> bool:
    """Whether the error, or one that led to it, tells of a full disk of ``folder``.

    An error that is explained already counts only if it names ``folder``.
    """
    is_explained = isinstance(error, OrchestratorError)
    while error is not None:
        text = str(error)
        is_full = getattr(error, "errno", None) in _FULL or _FULL_TEXTS.search(text)
        target = str(getattr(error, "filename2", None) or folder)  # what was copied to
        if is_full and target.startswith(folder) and (folder in text or not is_explained):
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_room(purpose: str, folder: str | None, reason: str) -> EnvironmentProblem:
    place = str(Path(folder).parent) if folder else "the folder for temporary files"
    return EnvironmentProblem(
        f"{place} has no room for {purpose}: {reason}; free up space there, or set TMPDIR to "
        "another folder, and run the same command again"
    )
