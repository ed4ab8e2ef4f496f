"""Fetch the sample grids of runs from MLflow."""

import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator.config.paths import sqlite_path
from orchestrator.tracking.client import artifact_errors, connect
from orchestrator.tracking.places import local_path, moved, old_folder

_GRID = re.compile(r"images/samples\+step\+(?P<step>\d+)\+.*(?<!compressed)\.png")


def fetch_grids(uri: str, runs: Mapping[int, str], folder: Path) -> dict[int, dict[int, Path]]:
    """Fetch the grids called ``samples`` of ``runs``, MLflow run ids by number, into ``folder``.

    Returns the image files by images seen, for each number that has any. Raises EnvironmentProblem
    if MLflow or the storage of its files is out of reach.
    """
    found: dict[int, dict[int, Path]] = {}
    with connect(uri, timeout_s=30) as client:
        for number, run_id in runs.items():
            place = client.get_run(run_id).info.artifact_uri
            check_files(uri, place)
            run_folder = folder / str(number)
            run_folder.mkdir(parents=True, exist_ok=True)
            with artifact_errors(place):
                for file in client.list_artifacts(run_id, "images"):
                    if (match := _GRID.fullmatch(file.path)) is not None:
                        path = Path(client.download_artifacts(run_id, file.path, str(run_folder)))
                        found.setdefault(number, {})[int(match["step"])] = path
    return found


def check_files(uri: str, place: str) -> None:
    """Raise EnvironmentProblem if the files were left behind when their folder was moved."""
    database, path = sqlite_path(uri), local_path(place)
    if database is None or path is None:
        return
    if (old := old_folder(database.parent, path)) is not None:
        raise moved(database, old)
