"""Keep the user's current folder out of Python's import path.

A job is run in a folder that may hold the user's own ``models/``, ``random.py`` or ``yaml.py``.
None of them may be imported in place of a module of this package, of a library or of Python.
"""

import os
import sys

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that holds the package ``orchestrator``: a checkout or site-packages."""


def leave_out_current_folder() -> None:
    """Drop the current folder from this process's import path and from that of its children.

    ``python -m`` and an empty or relative entry of PYTHONPATH put it there; Ray does so for an
    uploaded working directory. It stays if the package itself is in it.
    """
    try:
        current = os.path.realpath(os.getcwd())
    except OSError:  # it was deleted
        return
    holds_package = current == os.path.realpath(PACKAGE_ROOT)

    def is_users(entry: str) -> bool:
        return not holds_package and os.path.realpath(entry) == current

    sys.path[:] = [entry for entry in sys.path if not is_users(entry)]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [os.path.abspath(entry) for entry in entries if entry and not is_users(entry)]
    if holds_package and PACKAGE_ROOT not in kept:
        kept.append(PACKAGE_ROOT)  # the children do not look into the current folder themselves
    if kept:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    else:
        os.environ.pop("PYTHONPATH", None)
    os.environ["PYTHONSAFEPATH"] = "1"
