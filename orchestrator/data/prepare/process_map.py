"""Map over items in several processes, with the results in the order of the items."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.data.prepare.ordered_map import ordered_map
from orchestrator.errors import EnvironmentProblem

AHEAD = 16
"""Items per process that are computed in advance."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class ParallelMap(Protocol):
    """Apply a function to many items in parallel, with the results in the order of the items."""

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        workers: int | None,
        *,
        needs: Path,
    ) -> Iterator[Result]:
        """Yield ``function(item)`` for each item, in order.

        Args:
            workers: number of processes or CPUs to use; None uses all.
            needs: a file that the function reads and that every worker must be able to open.
        """


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    *,
    needs: Path,
) -> Iterator[Result]:
    """Map in processes of this machine; see ``ParallelMap``."""
    return process_map(function, items, workers or len(os.sched_getaffinity(0)))


def process_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    ahead: int = AHEAD,
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order; one process means the calling one.

    Raises what ``function`` raises, at that item's turn; EnvironmentProblem if a process was
    killed.
    """
    if processes == 1:
        yield from map(function, items)
        return
    # Forking would copy the locks of torch's and boto3's threads in an arbitrary state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_initialize)
    try:
        yield from ordered_map(pool, function, items, ahead * processes)
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            f"one of {processes} processes was killed, perhaps because memory ran out; "
            "try again with fewer"
        ) from error


def _initialize() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a pool starts this process"
    parent.join()
    os._exit(1)
