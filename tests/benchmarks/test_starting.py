"""The benchmarks that the docs quote start from a fresh clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SCRIPTS = [
    [f"benchmarks/{path.name}"]
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if path.name != "__init__.py"
]
PACKAGES = [
    ["-m", f"benchmarks.{path.parent.name}"]
    for path in sorted((ROOT / "benchmarks").glob("*/__main__.py"))
]


@pytest.mark.parametrize("command", SCRIPTS + PACKAGES, ids=lambda command: command[-1])
def test_a_benchmark_imports_its_modules_and_prints_its_help(command: list[str]) -> None:
    """Run without PYTHONPATH, since pytest adds tests/ to the path of its own process."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
