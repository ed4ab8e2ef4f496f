"""The benchmarks that the docs quote can be started from a fresh clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [[f"benchmarks/{path.name}"] for path in sorted((ROOT / "benchmarks").glob("*.py"))]
PACKAGES = [
    ["-m", f"benchmarks.{path.parent.name}"]
    for path in sorted((ROOT / "benchmarks").glob("*/__main__.py"))
]


@pytest.mark.parametrize("command", SCRIPTS + PACKAGES, ids=lambda command: command[-1])
def test_a_benchmark_finds_all_its_parts_and_tells_its_options(command: list[str]) -> None:
    """With nothing in the path but what Python puts there: pytest would add tests/."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
