"""Find stuck workers, read their stacks and kill them."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.worker_state import ENDED, HEARTBEAT_TIMEOUT_S, Heartbeat
from orchestrator.training.interfaces import STEP

TIMES_LONGEST = 10
"""A step may take this many times as long as the longest one before it."""
KILL_TIMEOUT_S = 40.0
"""Time limit for reading the stack of a stuck process and killing it."""
STACK_TIMEOUT_S = 25.0
"""Time limit for reading the stack; 10 s were too few on a machine with a load of 10."""


class StuckWorker(NamedTuple):
    """A rank that is stuck, and the evidence for it."""

    rank: int
    reason: str


def find_stuck(heartbeats: Mapping[int, Heartbeat], hang_timeout_s: float) -> StuckWorker | None:
    """Find the rank that holds up all others; None if no rank does.

    That is a rank without heartbeats. Or, when all ranks of the group have been within a step for
    more than ``hang_timeout_s``, the one with the fewest steps. Waiting for data, drawing,
    validating and saving do not count: they may take long, and have timeouts of their own.
    """
    expired = [
        rank
        for rank, heartbeat in heartbeats.items()
        if heartbeat.age_s > HEARTBEAT_TIMEOUT_S and heartbeat.activity != ENDED
    ]
    if expired:
        rank = max(expired, key=lambda rank: heartbeats[rank].age_s)
        return StuckWorker(rank, f"has sent no heartbeat for {heartbeats[rank].age_s:.0f} s")
    group = list(heartbeats.values())
    if not group or len(group) < group[0].world_size:
        return None
    if any(one.activity != STEP or one.num_steps < 2 for one in group):
        return None
    duration_s = min(heartbeat.activity_s + heartbeat.age_s for heartbeat in group)
    longest_s = max(heartbeat.longest_step_s for heartbeat in group)
    if duration_s <= max(hang_timeout_s, TIMES_LONGEST * longest_s):
        return None
    rank = min(heartbeats, key=lambda rank: heartbeats[rank].num_steps)
    return StuckWorker(
        rank, f"has been in the same step for {duration_s:.0f} s (longest so far {longest_s:.1f})"
    )


def kill_on_node(node_id: str, pid: int) -> str:
    """Kill a process of Ray on another node; return its stack, or why there is none."""
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(read_stack_and_kill)
    try:
        killed = task.options(scheduling_strategy=on_node).remote(pid)
        stack: str = ray.get(killed, timeout=KILL_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        return f"its node does not answer: {type(error).__name__}"
    return stack


def read_stack_and_kill(pid: int) -> str:
    """Kill a process of Ray on this node; return its stack, or why there is none.

    The stack is read from outside, so that a stopped process has one too.
    """
    try:
        process = psutil.Process(pid)
        if not "".join(process.cmdline()).startswith("ray::"):
            return "its process id belongs to another process now"
    except psutil.Error:
        return "it has already exited"
    stack = read_stack(pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return stack


def read_stack(pid: int) -> str:
    """Return the Python stacks of all threads of a process, by py-spy, which Ray depends on."""
    tool = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    try:
        command = [tool, "dump", "--nonblocking", "--pid", str(pid)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=STACK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"its stack could not be read: {error}"
    return done.stdout.strip() or f"its stack could not be read: {done.stderr.strip()}"
