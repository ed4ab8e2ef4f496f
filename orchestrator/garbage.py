"""When Python's garbage collector runs: rarely while importing, never at exit.

torch, MLflow and Ray make some 570,000 objects while they are imported. Looking for cycles among
them took a fifth of the CPU time of a start, and 2 s at the end of every command.
"""

import gc

_DEFAULT = gc.get_threshold()
IMPORTING = (50_000, 20, 100)
"""Thresholds of the three generations while a process mostly imports."""


def collect_rarely() -> None:
    """Let a process start fast; called before it imports torch, MLflow or Ray."""
    gc.set_threshold(*IMPORTING)


def collect_as_usual() -> None:
    """End what ``collect_rarely`` began, before a training: a cycle may hold much GPU memory.

    What was imported is left out from now on, so that no step waits for a look through it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_DEFAULT)


def leave_to_the_system() -> None:
    """Let the process exit without a last look through all objects."""
    gc.freeze()
