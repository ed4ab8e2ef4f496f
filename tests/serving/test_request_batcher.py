"""Requests that are computed together get what they would get alone."""

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.serving.refused_request import Busy, Refused
from orchestrator.serving.request_batcher import Columns, RequestBatcher


class Computer:
    """Squares numbers and adds offsets; notes the sizes of the batches, and waits if told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seen: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, numbers: NDArray[Any], offsets: NDArray[Any]) -> NDArray[Any]:
        self.go.wait(10)
        self.sizes.append(len(numbers))
        self.seen += numbers.tolist()
        if -1 in numbers:
            raise ValueError("minus one")
        rows: NDArray[Any] = (numbers**2)[:, None] + offsets
        return rows


def columns(*numbers: int) -> Columns:
    return np.array(numbers), np.array([[0, n] for n in numbers])


def expected(*numbers: int) -> list[list[int]]:
    return [[n * n, n * n + n] for n in numbers]


@pytest.fixture
def computer() -> Computer:
    return Computer()


@pytest.fixture
def make(computer: Computer) -> Callable[..., RequestBatcher]:
    def made(max_batch: int = 8, max_waiting: int = 1000) -> RequestBatcher:
        return RequestBatcher(computer, max_batch, max_waiting)

    return made


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_every_request_of_any_size_gets_its_own_rows(
    make: Callable[..., RequestBatcher], computer: Computer
) -> None:
    sizes = random.Random(0)

    async def ask(batcher: RequestBatcher, first: int) -> None:
        numbers = range(first, first + sizes.randint(1, 30))
        found = await batcher.submit(*columns(*numbers), timeout_s=10)
        assert found.tolist() == expected(*numbers)
        await asyncio.sleep(0)

    async def run() -> None:
        batcher = make(max_waiting=10_000)
        await asyncio.gather(*(ask(batcher, 100 * n) for n in range(200)))
        batcher.close()
        batcher.join()

    asyncio.run(run())
    assert max(computer.sizes) == 8
    assert sum(computer.sizes) == len(set(computer.seen))


def test_requests_that_come_while_one_is_computed_are_computed_together(
    make: Callable[..., RequestBatcher], computer: Computer
) -> None:
    async def run() -> None:
        batcher = make()
        computer.go.clear()
        first = asyncio.create_task(batcher.submit(*columns(1), timeout_s=10))
        await asyncio.sleep(0.05)  # its batch has begun
        others = [asyncio.create_task(batcher.submit(*columns(n), timeout_s=10)) for n in range(5)]
        await until(lambda: batcher.num_waiting == 5)
        computer.go.set()
        await asyncio.gather(first, *others)
        batcher.close()

    asyncio.run(run())
    assert computer.sizes == [1, 5]


def test_requests_beyond_the_limit_are_refused_and_the_others_served(
    make: Callable[..., RequestBatcher], computer: Computer
) -> None:
    async def run() -> None:
        batcher = make(max_waiting=4)
        computer.go.clear()
        first = asyncio.create_task(batcher.submit(*columns(1), timeout_s=10))
        await asyncio.sleep(0.05)  # its batch has begun
        second = asyncio.create_task(batcher.submit(*columns(2, 3, 4), timeout_s=10))
        await until(lambda: batcher.num_waiting == 3)
        with pytest.raises(Busy, match="try again in") as refused:
            await batcher.submit(*columns(5, 6), timeout_s=10)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        computer.go.set()
        assert (await first).tolist() == expected(1)
        assert (await second).tolist() == expected(2, 3, 4)
        batcher.close()

    asyncio.run(run())


def test_a_request_that_was_given_up_is_not_computed(
    make: Callable[..., RequestBatcher], computer: Computer
) -> None:
    async def run() -> None:
        batcher = make()
        computer.go.clear()
        first = asyncio.create_task(batcher.submit(*columns(1), timeout_s=10))
        await asyncio.sleep(0.05)
        left = asyncio.create_task(batcher.submit(*columns(2), timeout_s=10))
        late = asyncio.create_task(batcher.submit(*columns(3), timeout_s=0.05))
        last = asyncio.create_task(batcher.submit(*columns(4), timeout_s=10))
        await until(lambda: batcher.num_waiting == 3)
        left.cancel()
        with pytest.raises(Refused, match=r"longer than 0\.05 s") as refused:
            await late
        assert refused.value.status == 503
        computer.go.set()
        await asyncio.gather(first, last)
        assert batcher.num_waiting == 0
        batcher.close()

    asyncio.run(run())
    assert computer.seen == [1, 4]


def test_an_error_is_that_of_its_batch_alone(
    make: Callable[..., RequestBatcher], computer: Computer
) -> None:
    async def run() -> None:
        batcher = make()
        with pytest.raises(ValueError, match="minus one"):
            await batcher.submit(*columns(-1), timeout_s=10)
        assert (await batcher.submit(*columns(7), timeout_s=10)).tolist() == expected(7)
        batcher.close()

    asyncio.run(run())


def test_closing_computes_what_waits_and_ends_the_thread(
    make: Callable[..., RequestBatcher], computer: Computer
) -> None:
    async def run() -> None:
        batcher = make()
        computer.go.clear()
        asked = [asyncio.create_task(batcher.submit(*columns(n), timeout_s=10)) for n in range(3)]
        await asyncio.sleep(0.05)
        batcher.close()
        computer.go.set()
        assert [found.tolist()[0][0] for found in await asyncio.gather(*asked)] == [0, 1, 4]
        batcher.join()

    asyncio.run(run())
