"""A function over many items as tasks of a Ray cluster, with results in the order of the items."""

import itertools
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.diagnostics.doctor import require_ray_cluster
from orchestrator.errors import DataError, EnvironmentProblem, OrchestratorError

ITEMS_PER_TASK = 8
TASKS_PER_CPU = 2
"""Under way or done at a time, for each CPU that is used."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    *,
    needs: Path,
) -> Iterator[Result]:
    """``function`` of each item, in order, on the cluster that RAY_ADDRESS names.

    Args:
        needs: a file that the function reads, which every node must see.
        workers: CPUs to use, by default all.

    Raises:
        EnvironmentProblem: the cluster is out of reach, or a task was lost.
        DataError: a node does not see ``needs``.
        OrchestratorError: what ``function`` raises, in its turn.
    """
    with connected("unset it to use this machine alone"):
        _check_visible(needs)
        cpus = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task: Any = ray.remote(num_cpus=1)(_apply)
        function_there = ray.put(function)
        waiting: deque[Any] = deque()
        rest = iter(items)
        while portion := list(itertools.islice(rest, ITEMS_PER_TASK)):
            waiting.append(task.remote(function_there, portion))
            if len(waiting) >= TASKS_PER_CPU * cpus:
                yield from _result(waiting.popleft())
        while waiting:
            yield from _result(waiting.popleft())


def _apply(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    return [function(item) for item in items]


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OrchestratorError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise EnvironmentProblem(f"the Ray cluster lost a task: {error}; try again") from error


def _check_visible(needs: Path) -> None:
    look: Any = ray.remote(num_cpus=0)(_sees)
    seen = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            where = node["NodeManagerAddress"]
            seen[where] = look.options(scheduling_strategy=there).remote(str(needs))
    blind = [where for where, reference in seen.items() if not _result(reference)]
    if blind:
        raise DataError(
            f"{needs} is not seen on {', '.join(blind)}; put the images where every node of the "
            "cluster mounts them, or unset RAY_ADDRESS to pack them on this machine alone"
        )


def _sees(path: str) -> bool:
    return Path(path).is_file()


@contextmanager
def connected(instead: str) -> Iterator[None]:
    """A connection to the cluster of RAY_ADDRESS, unless there is one; signals keep their handlers.

    Raises EnvironmentProblem, which says what to do ``instead``, if the cluster is out of reach.
    """
    if ray.is_initialized():
        yield
        return
    require_ray_cluster(os.environ)
    address, handler = os.environ["RAY_ADDRESS"], signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot reach the Ray cluster at {address}: {error}; check RAY_ADDRESS, or {instead}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()
