"""Load the job file of a command."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config.load import LoadedJob


def load(path: Path, overrides: Sequence[str] | None = None) -> "LoadedJob":
    """Load a job file, and set the variables of its `s3:` section for this process."""
    from orchestrator.config.load import load_job

    loaded = load_job(path, overrides or ())
    os.environ.update(loaded.job.variables())
    return loaded
