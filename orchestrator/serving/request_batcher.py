"""Compute the images of many requests together.

One thread computes. While it does, requests wait; what waits when it is done is the next batch. So
a lone request is computed at once, and under load batches grow by themselves.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.refused_request import Busy, Refused

Columns: TypeAlias = tuple[NDArray[Any], ...]
"""Inputs of a request, or of a batch: arrays (B, ...) of one length."""
Compute: TypeAlias = Callable[..., NDArray[Any]]
"""Columns -> one array (B, ...)."""
FIRST_RATE = 10.0
"""Images/s that are expected before the first batch."""


@dataclass(eq=False)
class _Request:
    columns: Columns
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[NDArray[Any]]"
    num_taken: int = 0
    parts: list[NDArray[Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns[0])


class RequestBatcher:
    """Computes requests in batches, in the order in which they came.

    Call ``close`` when no request is left.
    """

    def __init__(
        self,
        compute: Compute,
        max_batch: int,
        max_waiting: int,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """Start the thread.

        Args:
            compute: called with columns of at most ``max_batch`` rows, in this batcher's thread.
            max_batch: rows of a batch.
            max_waiting: rows that may wait.
            observe: called after each batch with its size and the seconds that it took.
        """
        self._compute, self._max_batch, self._max_waiting = compute, max_batch, max_waiting
        self._observe = observe
        self._waiting: deque[_Request] = deque()
        self._num_waiting = 0
        self._seconds_per_row = 1 / FIRST_RATE
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Number of rows that wait."""
        return self._num_waiting

    async def submit(self, *columns: NDArray[Any], timeout_s: float) -> NDArray[Any]:
        """Return what ``compute`` gives for these columns.

        Raises:
            Busy: too many rows wait.
            Refused: it has taken longer than ``timeout_s``.
        """
        loop = asyncio.get_running_loop()
        request = _Request(columns, loop, loop.create_future())
        with self._changed:
            assert not self._is_closed
            if self._num_waiting + len(request) > self._max_waiting:
                raise Busy(self._num_waiting * self._seconds_per_row)
            self._waiting.append(request)
            self._num_waiting += len(request)
            self._changed.notify()
        try:
            return await asyncio.wait_for(request.done, timeout_s)
        except TimeoutError:
            raise Refused(503, f"this has taken longer than {timeout_s:g} s") from None

    def close(self) -> None:
        """End the thread when all that waits has been computed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            try:
                slices = [
                    [column[start:stop] for column in request.columns]
                    for request, start, stop in batch
                ]
                columns = [np.concatenate(parts) for parts in zip(*slices, strict=True)]
                rows = self._compute(*columns)
            except Exception as error:  # the next batch may be fine
                self._deliver([request for request, _, _ in batch], error)
                continue
            seconds, size = time.monotonic() - started, len(columns[0])
            self._seconds_per_row += 0.2 * (seconds / size - self._seconds_per_row)
            self._observe(size, seconds)
            self._give(batch, rows)

    def _next_batch(self) -> list[tuple[_Request, int, int]]:
        """Wait for requests; return them with the rows to compute. Empty if there will be none."""
        with self._changed:
            while True:
                batch, room = [], self._max_batch
                while room and self._waiting:
                    request = self._waiting[0]
                    if request.done.done():  # given up: the client has left, or waited too long
                        self._num_waiting -= len(request) - request.num_taken
                        self._waiting.popleft()
                        continue
                    start, stop = request.num_taken, min(len(request), request.num_taken + room)
                    batch.append((request, start, stop))
                    request.num_taken = stop
                    room -= stop - start
                    self._num_waiting -= stop - start
                    if stop == len(request):
                        self._waiting.popleft()
                if batch or self._is_closed:
                    return batch
                self._changed.wait()

    def _give(self, batch: list[tuple[_Request, int, int]], rows: NDArray[Any]) -> None:
        """Hand each request its rows; it is done when it has them all."""
        done, position = [], 0
        for request, start, stop in batch:
            request.parts.append(rows[position : position + stop - start])
            position += stop - start
            if stop == len(request):
                done.append(request)
        self._deliver(done)

    def _deliver(self, requests: list[_Request], error: Exception | None = None) -> None:
        """Tell the event loops, once each, for each call wakes one up."""
        for loop in {request.loop for request in requests}:
            ours = [request for request in requests if request.loop is loop]
            try:
                loop.call_soon_threadsafe(_finish, ours, error)
            except RuntimeError:  # the loop has ended, so nobody waits
                continue


def _finish(requests: list[_Request], error: Exception | None) -> None:
    for request in requests:
        if request.done.done():
            continue
        if error is not None:
            request.done.set_exception(error)
        else:
            parts = request.parts
            request.done.set_result(parts[0] if len(parts) == 1 else np.concatenate(parts))
