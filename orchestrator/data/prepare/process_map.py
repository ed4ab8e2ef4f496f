"""A function over many items in processes side by side, with results in the order of the items."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.data.prepare.ordered_map import in_order
from orchestrator.errors import EnvironmentProblem

AHEAD = 16
"""Items for each process that are under way or done at a time."""

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
        """Yield ``function(item)`` of each item, in order.

        Args:
            workers: how many processes or CPUs to use; None, all.
            needs: a file that the function reads, which every worker must be able to open.
        """


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    *,
    needs: Path,
) -> Iterator[Result]:
    """Map in processes of this machine; see ``ParallelMap``."""
    return in_processes(function, items, workers or len(os.sched_getaffinity(0)))


def in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    ahead: int = AHEAD,
) -> Iterator[Result]:
    """``function`` of each item, in order; with one process in this one.

    Raises what ``function`` raises, in its turn; EnvironmentProblem if a process was killed.
    """
    if processes == 1:
        yield from map(function, items)
        return
    # Forking would copy the locks of torch's and boto3's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_prepare)
    try:
        yield from in_order(pool, function, items, ahead * processes)
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            f"one of {processes} processes was killed, perhaps for want of memory; "
            "try again with fewer"
        ) from error


def _prepare() -> None:
    """A Ctrl-C is the parent's to answer; without a parent there is nothing left to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it was started by one"
    parent.join()
    os._exit(1)
