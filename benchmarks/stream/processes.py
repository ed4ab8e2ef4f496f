"""Measure CPU time and memory of a process tree from /proc; Linux only."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLED_S = 0.1
_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def adopt_orphans() -> None:
    """Become the parent of processes that children leave behind, such as Ray's daemons."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tree(root: int) -> list[int]:
    """Return ``root`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU time of the tree so far, including finished processes."""
    ticks = 0
    for process in tree(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # user, system, and both of waited-for children
    return ticks / TICKS


def pss_bytes(root: int) -> int:
    """Return the proportional set size of the tree, which counts a shared page once."""
    total = 0
    for process in tree(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


class TimeLimit(Exception):
    """A process exceeded its time limit and was killed."""


def run(
    command: Sequence[str], environment: Mapping[str, str], limit_s: float, sample: bool = False
) -> tuple[int, str, str, int]:
    """Run a command; return exit code, stdout, stderr, and the peak PSS if ``sample``.

    After ``limit_s``, kills the process tree and raises TimeLimit.
    """
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with _peak(process.pid, sample) as peak:
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            for each in tree(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            errors = process.communicate()[1]
            print(errors[-2000:], file=sys.stderr)
            raise TimeLimit(f"killed after {limit_s:g} s") from error
    return process.returncode, output, errors, peak[0]


@contextlib.contextmanager
def _peak(root: int, sample: bool) -> Iterator[list[int]]:
    """Sample the peak PSS of the tree while the block runs."""
    highest, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLED_S):
            highest[0] = max(highest[0], pss_bytes(root))

    thread = threading.Thread(target=watch, daemon=True)
    if sample:
        thread.start()
    try:
        yield highest
    finally:
        ended.set()
        if sample:
            thread.join()


def disk_bytes(folder: Path) -> int:
    """Return the total size of the files in ``folder``."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
