"""What was measured, by group, with the commit and the load of the machine beside it."""

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
    "mailbox": cluster.measure_mailbox,
    "polling": cluster.measure_polling,
    "group": cluster.measure_group,
    "conductor": cluster.measure_conductor,
}
"""Names of the groups, which are arguments of the command, and what measures each."""


def measure(group: str) -> dict[str, Any]:
    """The figures of one group, and where and when they were taken."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="sc-", ignore_cleanup_errors=True) as folder:
        figures = GROUPS[group](Path(folder))
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load": round(load, 1),
        "figures": {name: float(f"{value:.4g}") for name, value in figures.items()},
    }


def keep(group: str, measured: Mapping[str, Any], path: Path = FILE) -> None:
    """Write the figures of one group beside those of the others."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[group] = measured
    ordered = {name: known[name] for name in GROUPS if name in known}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def load(path: Path = FILE) -> dict[str, float]:
    """All figures that were kept, by their names, which end in their units."""
    groups = json.loads(path.read_text()).values()
    return {name: value for group in groups for name, value in group["figures"].items()}


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
