"""Workers that are stuck: who it is, where it stands, and its end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from orchestrator.cluster.worker_state import ENDED, SILENT_S, Beat
from orchestrator.training.interfaces import STEP

TIMES_LONGEST = 10
"""A step may take so many times as long as the longest one before it."""


class Stuck(NamedTuple):
    """A rank that is stuck, and how that was seen."""

    rank: int
    why: str


def find_stuck(beats: Mapping[int, Beat], hang_timeout_s: float) -> Stuck | None:
    """The rank that holds all others up; None if none does.

    A rank that is silent, or, when all ranks of the group have been within a step for more than
    ``hang_timeout_s``, the one that has come least far. Waiting for data, drawing, validating and
    saving are not counted: they may take long, and have limits of their own.
    """
    silent = [r for r, beat in beats.items() if beat.age_s > SILENT_S and beat.doing != ENDED]
    if silent:
        rank = max(silent, key=lambda rank: beats[rank].age_s)
        return Stuck(rank, f"has given no sign of life for {beats[rank].age_s:.0f} s")
    group = list(beats.values())
    if not group or len(group) < group[0].world_size:
        return None
    if any(beat.doing != STEP or beat.steps < 2 for beat in group):
        return None
    for_s = min(beat.for_s + beat.age_s for beat in group)
    longest_s = max(beat.longest_step_s for beat in group)
    if for_s <= max(hang_timeout_s, TIMES_LONGEST * longest_s):
        return None
    rank = min(beats, key=lambda rank: beats[rank].steps)
    return Stuck(
        rank, f"has been in the same step for {for_s:.0f} s (longest so far {longest_s:.1f})"
    )


def stack_and_end(pid: int) -> str:
    """Where the process ``pid`` of this machine stands, after which it is killed.

    The stack is read from outside, so a stopped process has one too.
    """
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "it has ended by itself"
    if not title.startswith(b"ray::"):
        return "its number belongs to another process now"
    found = stack_of(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return found


def stack_of(pid: int) -> str:
    """Python stacks of all threads of a process, by py-spy, which Ray brings along."""
    tool = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    try:
        done = subprocess.run(
            [tool, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"its stack could not be read: {error}"
    return done.stdout.strip() or f"its stack could not be read: {done.stderr.strip()}"
