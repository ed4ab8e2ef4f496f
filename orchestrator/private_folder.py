"""Folders in a shared place, such as /tmp, that only this user can use."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

MAX_RAY_FOLDER_BYTES = 40
"""Longest path of Ray's folder: it appends up to 66 bytes for Unix sockets, of at most 107."""


def private_folder(name: str, parent: Path) -> Path:
    """Return the folder NAME-UID in ``parent``; create it if it does not exist.

    If somebody else owns it or can write to it, a new one is created each time. Raises OSError if
    ``parent`` is not writable.
    """
    folder = parent / f"{name}-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _hide(folder)
    return folder if is_private(folder) else Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def existing_private_folder(name: str, parent: Path) -> Path | None:
    """Return what ``private_folder`` would, but create nothing: None if there is none."""
    folder = parent / f"{name}-{os.getuid()}"
    return folder if is_private(folder) else None


def _hide(folder: Path) -> None:
    """Withdraw the others' permission to read a folder of this user that they cannot change."""
    found = folder.lstat()
    unchanged = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o022
    if unchanged and found.st_uid == os.getuid():
        folder.chmod(0o700)


def is_private(folder: Path) -> bool:
    """Return whether ``folder`` belongs to this user and nobody else can write to it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    return private and found.st_uid == os.getuid()
