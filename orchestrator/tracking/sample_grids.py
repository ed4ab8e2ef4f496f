"""Fetch the sample grids of runs from MLflow."""

import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator.tracking.client import connect

_GRID = re.compile(r"images/samples\+step\+(?P<step>\d+)\+.*(?<!compressed)\.png")


def fetch_grids(uri: str, runs: Mapping[int, str], folder: Path) -> dict[int, dict[int, Path]]:
    """Fetch the grids called ``samples`` of ``runs``, MLflow run ids by number, into ``folder``.

    Returns the image files by images seen, for each number that has any. Raises EnvironmentProblem
    if MLflow is out of reach.
    """
    found: dict[int, dict[int, Path]] = {}
    with connect(uri, timeout_s=30) as client:
        for number, run_id in runs.items():
            run_folder = folder / str(number)
            run_folder.mkdir(parents=True, exist_ok=True)
            for file in client.list_artifacts(run_id, "images"):
                if (match := _GRID.fullmatch(file.path)) is not None:
                    path = Path(client.download_artifacts(run_id, file.path, str(run_folder)))
                    found.setdefault(number, {})[int(match["step"])] = path
    return found
