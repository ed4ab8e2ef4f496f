"""Processes that evaluate beside a training in this process, and their deaths."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def evaluators() -> list[psutil.Process]:
    """The processes under this one that evaluate."""
    found = []
    for process in psutil.Process().children():
        try:
            if "evaluation_process" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def killing_evaluators(most: int) -> Iterator[list[int]]:
    """Kill each process that evaluates, up to ``most`` of them."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < most and not over.is_set():
            for process in evaluators():
                if process.pid not in killed and process.status() != psutil.STATUS_ZOMBIE:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
