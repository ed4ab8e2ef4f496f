"""Measured figures by group, with the commit and the load of the machine."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.scale import cluster, reading, saving, tracking

FILE = Path(__file__).with_name("figures.json")
GROUPS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "order": reading.measure_order,
    "index": reading.measure_index,
    "start": reading.measure_start,
    "requests": reading.measure_requests,
    "checkpoints": saving.measure_checkpoints,
    "mlflow": tracking.measure_mlflow,
    "worker_state": cluster.measure_worker_state,
    "polling": cluster.measure_polling,
    "process_group": cluster.measure_process_group,
    "sweep_controller": cluster.measure_sweep_controller,
}
"""Groups by name, which is the argument of the measure command."""


def measure(group: str) -> dict[str, Any]:
    """Measure one group; return its figures with commit, date and load."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="sc-", ignore_cleanup_errors=True) as folder:
        figures = GROUPS[group](Path(folder))
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load": round(load, 1),
        "figures": {name: float(f"{value:.4g}") for name, value in figures.items()},
    }


def save_figures(group: str, measured: Mapping[str, Any], path: Path = FILE) -> None:
    """Add or replace the figures of one group in the file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[group] = measured
    ordered = {name: known[name] for name in GROUPS if name in known}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def load_figures(path: Path = FILE) -> dict[str, float]:
    """Load all figures by name; names end in the unit."""
    groups = json.loads(path.read_text()).values()
    return {name: value for group in groups for name, value in group["figures"].items()}


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
