"""Map over items in threads or processes, with the results in order, and count the progress."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.data.format.shard_index import ProgressCallback
from orchestrator.errors import EnvironmentProblem

AHEAD = 16
"""Items per process that are computed in advance."""
PROGRESS_INTERVAL_S = 0.1

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for each item, in order, computing up to ``ahead`` in advance.

    Raises what ``function`` raises, at that item's turn. The end of the iteration, or closing the
    generator, shuts the pool down and waits for the calls that have started.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class ProgressCounter:
    """Thread-safe counter that calls ``progress(done, total)``, at most every 0.1 s."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._total, self._progress = total, progress
        self._done, self._reported_at = 0, 0.0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add ``count`` to what is done; the call that completes the total always reports."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            due = self._done >= self._total or now - self._reported_at >= PROGRESS_INTERVAL_S
            if self._progress is not None and due:
                self._reported_at = now
                self._progress(self._done, self._total)


class ParallelMap(Protocol):
    """Apply a function to many items in parallel, with the results in the order of the items."""

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int | None,
        *,
        needs: Path | None,
    ) -> Iterator[Result]:
        """Yield ``function(item)`` for each item, in order.

        Args:
            workers: number of processes or CPUs to use; None uses all.
            needs: a file that the function reads and that every worker must be able to open;
                None if there is none.
        """


def map_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None,
    *,
    needs: Path | None = None,
) -> Iterator[Result]:
    """Map in processes of this machine, see ``ParallelMap``; one means the calling process.

    Raises what ``function`` raises, at that item's turn; EnvironmentProblem if a process was
    killed.
    """
    processes = workers or len(os.sched_getaffinity(0))
    if processes == 1:
        yield from map(function, items)
        return
    # Forking would copy the locks of torch's and boto3's threads in an arbitrary state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_initialize)
    try:
        yield from ordered_map(pool, function, items, AHEAD * processes)
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
