"""Restart the workers of one run again and again, and see what grows.

    python benchmarks/soak.py --restarts 1000

A worker of a small pix2pix is killed after each new checkpoint. What lives on is measured every
tenth of the restarts, between two of them: memory, open files and sockets of the driver and of
Ray's processes, files in the run's storage and in the temporary folders, and Ray's session folder;
then how much each process has grown since the start.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from recovery import JOB, run_driver

from orchestrator.faults.injection import run_command
from orchestrator.faults.run_processes import RunProcesses

TIMEOUT_S = 300.0


def newest_checkpoint(folder: Path) -> str:
    names = (path.parent.name for path in folder.glob("runs/*/checkpoints/*/manifest.json"))
    return max(names, default="")


def wait_for_restart(
    folder: Path, driver: psutil.Popen, before: set[int], newest: str, num_workers: int
) -> None:
    """Wait for new workers and for a checkpoint after ``newest``."""
    deadline, processes = time.monotonic() + TIMEOUT_S, RunProcesses(driver.pid)
    while True:
        workers = set(processes.workers())
        are_new = len(workers) == num_workers and not workers & before
        if are_new and newest_checkpoint(folder) > newest:
            return
        log = folder / "steps/log.txt"
        assert driver.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


class Grown(NamedTuple):
    """What a process has."""

    title: str
    mb: float
    open_files: int


def by_process(driver: int) -> dict[int, Grown]:
    """Return what the driver and each process below it has, by its number."""
    found = {}
    for pid in {driver, *RunProcesses(driver).named("")}:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            title = " ".join(process.cmdline()).strip()[-60:]
            found[pid] = Grown(title, process.memory_info().rss / 1e6, process.num_fds())
    return found


def show_growth(before: dict[int, Grown], now: dict[int, Grown]) -> None:
    """Print how much each process that was there at first has grown."""
    for pid in before.keys() & now.keys():
        mb, open_files = (b - a for a, b in zip(before[pid][1:], now[pid][1:], strict=True))
        if abs(mb) > 1 or open_files:
            print(f"  {mb:+6.0f} MB {open_files:+4} open files  {before[pid].title}", flush=True)


def measure(folder: Path, driver: int) -> dict[str, float]:
    """Measure the processes that outlive a restart, and all files."""
    processes = RunProcesses(driver)
    workers = set(processes.workers())
    memory = open_files = sockets = 0
    sessions: set[str] = set()
    for pid in {driver, *processes.named("")} - workers:
        try:
            process = psutil.Process(pid)
            memory += process.memory_info().rss
            open_files += process.num_fds()
            sockets += len(process.net_connections())
            sessions |= set(re.findall(r"/tmp/ray/session_[\w-]+", " ".join(process.cmdline())))
        except psutil.Error:
            continue
    ray = Path(*(name for name in sessions if not name.endswith("latest")))
    ray_bytes = sum(path.stat().st_size for path in ray.rglob("*") if path.is_file())
    temporary = Path(tempfile.gettempdir(), f"orchestrator-{os.getuid()}")
    return {
        "processes": len({driver, *processes.named("")}),
        "memory MB": round(memory / 1e6),
        "open files": open_files,
        "sockets": sockets,
        "storage files": count_files(folder / "runs"),
        "temporary files": count_files(temporary),
        "shared memory files": count_files(Path("/dev/shm")),
        "Ray's log files": count_files(ray / "logs"),
        "Ray's session MB": round(ray_bytes / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    from orchestrator.data.prepare.pack import pack_folder
    from support.drawings import draw_pairs

    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        pairs = draw_pairs(folder / "pairs", count=40, size=16)
        pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
        (folder / "steps").mkdir()
        job = JOB.format(folder=folder).replace("max_failures: 1000", "max_failures: 1000000")
        job = job.replace("workers: 2", f"workers: {options.workers}")
        (folder / "job.yaml").write_text(job)
        command, started = run_command(folder / "job.yaml", ()), time.monotonic()
        with run_driver(command, folder / "steps") as driver:
            wait_for_restart(folder, driver, set(), "", options.workers)
            first = by_process(driver.pid)
            for number in range(options.restarts + 1):
                if number % max(1, options.restarts // 10) == 0:
                    found = {"restarts": number, "s": round(time.monotonic() - started)}
                    print(json.dumps(found | measure(folder, driver.pid)), flush=True)
                    show_growth(first, by_process(driver.pid))
                if number == options.restarts:
                    break
                workers = RunProcesses(driver.pid).workers()
                os.kill(workers[-1], signal.SIGKILL)
                newest = newest_checkpoint(folder)
                wait_for_restart(folder, driver, set(workers), newest, options.workers)


if __name__ == "__main__":
    main()
