"""Faults from within: loaded by every Python process that has this folder in PYTHONPATH.

Each training step looks for FAULT_FOLDER/<process id>.fault and fails as it says; each share of a
batch that was trained on is written to FAULT_FOLDER/<process id>.shares. While the file
FAULT_FOLDER/slow exists, a step takes SLOW_S longer.
"""

import os
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("FAULT_FOLDER")
PACE_S = 0.03
"""Extra time of each step, so that faults hit in the middle of something."""
SLOW_S = 0.5
"""Extra time of a step while a test needs the run to last."""


def _inject_faults(step: Any, folder: str) -> None:
    original = step.__call__
    fault = Path(folder, f"{os.getpid()}.fault")
    shares = Path(folder, f"{os.getpid()}.shares")
    slow = Path(folder, "slow")

    def call(self: Any, batch: Any, step: int, progress: float) -> Any:
        time.sleep(SLOW_S if slow.exists() else PACE_S)
        if fault.exists():
            kind = fault.read_text()
            fault.unlink()
            if kind == "exit":
                os._exit(3)
            if kind == "out of memory":
                raise MemoryError("cannot allocate an injected fault")
            raise RuntimeError("injected fault")
        metrics = original(self, batch, step, progress)
        with shares.open("a") as file:
            file.write(f"{step} {' '.join(map(str, batch.positions.tolist()))}\n")
        return metrics

    step.__call__ = call


class _Finder:
    """Import hook that changes the training step when its module is imported."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "orchestrator.training.step":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        original = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            original(module)
            _inject_faults(module.TrainingStep, self._folder)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER:
    sys.meta_path.insert(0, _Finder(FOLDER))
