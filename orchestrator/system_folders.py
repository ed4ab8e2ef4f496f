"""Folders in which the kernel shows its state: nothing there is data, and nothing can be kept."""

import os
from pathlib import Path

SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")
_MEMORY_DISK = "/dev/shm"


def system_folder(path: str | Path) -> str | None:
    """Return the folder of the system that ``path`` is in or leads to; None if in no such folder.

    >>> system_folder("/dev/../proc/self/mem"), system_folder("/dev/shm/runs")
    ('/proc', None)
    """
    try:
        found = Path(os.path.realpath(path))
    except (OSError, ValueError):
        return None
    if found.is_relative_to(_MEMORY_DISK):
        return None
    return next((top for top in SYSTEM_FOLDERS if found.is_relative_to(top)), None)
