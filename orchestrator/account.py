"""Give this process a user name and a home folder where the system has none.

A container that runs under an arbitrary user id has no line in /etc/passwd and often no HOME.
torch, MLflow and Ray ask for both, and fail without them.
"""

import getpass
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from orchestrator.private_folder import private_folder


def complete_account(environ: MutableMapping[str, str]) -> None:
    """Set USER and HOME in ``environ``, that of this process, where the system has neither."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        environ["USER"] = f"uid-{os.getuid()}"
    if not os.path.isabs(os.path.expanduser("~")):
        environ["HOME"] = str(private_folder("home", Path(tempfile.gettempdir())))
