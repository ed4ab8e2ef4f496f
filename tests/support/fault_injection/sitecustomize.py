"""Faults from within: loaded by every Python process that has this folder in PYTHONPATH.

Each training step looks for PUNISHER_FOLDER/<process id>.fault and does what it says; each share
of a batch that was trained on is written to PUNISHER_FOLDER/<process id>.shares.
While there is a PUNISHER_FOLDER/slow, a step takes SLOW_S longer.
"""

import os
import sys
import time
from pathlib import Path

FOLDER = os.environ.get("PUNISHER_FOLDER")
PACE_S = 0.03
"""A step takes so much longer: faults are to hit in the middle of something."""
SLOW_S = 0.5
"""So that a training is not over before what a test waits for."""


def _punished(step):  # type: ignore[no-untyped-def]
    ours = step.__call__
    fault = Path(FOLDER, f"{os.getpid()}.fault")
    shares = Path(FOLDER, f"{os.getpid()}.shares")
    slow = Path(FOLDER, "slow")

    def call(self, batch, step, progress):  # type: ignore[no-untyped-def]
        time.sleep(SLOW_S if slow.exists() else PACE_S)
        if fault.exists():
            what = fault.read_text()
            fault.unlink()
            if what == "exit":
                os._exit(3)
            if what == "out of memory":
                raise MemoryError("cannot allocate a punishment")
            raise RuntimeError("punished")
        metrics = ours(self, batch, step, progress)
        with shares.open("a") as file:
            file.write(f"{step} {' '.join(map(str, batch.positions.tolist()))}\n")
        return metrics

    step.__call__ = call


class _Finder:
    """Changes the training step when its module is imported."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != "orchestrator.training.step":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        ours = spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            ours(module)
            _punished(module.TrainingStep)

        spec.loader.exec_module = exec_module
        return spec


if FOLDER:
    sys.meta_path.insert(0, _Finder())
