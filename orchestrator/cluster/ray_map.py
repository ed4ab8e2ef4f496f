"""Map a function over many items as tasks on a Ray cluster, with results in order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.ray_session import ray_session
from orchestrator.errors import DataError, EnvironmentProblem, OrchestratorError

ITEMS_PER_TASK = 8
TASKS_PER_CPU = 2
"""Tasks that run or are done at a time, for each CPU that is used."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_ray(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None,
    *,
    needs: Path | None,
) -> Iterator[Result]:
    """Yield ``function(item)`` of each item, in order, on the cluster of RAY_ADDRESS.

    Args:
        workers: CPUs to use; None, all.
        needs: a file that the function reads, which every node must be able to open, or None.

    Raises:
        EnvironmentProblem: the cluster is out of reach, or a task was lost.
        DataError: a node cannot open ``needs``.
        OrchestratorError: raised by ``function``, in the order of the items.
    """
    with ray_session("unset it to use this machine alone"):
        if needs is not None:
            _check_visible(needs)
        cpus = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task: Any = ray.remote(num_cpus=1)(_apply)
        shared_function = ray.put(function)
        pending: deque[Any] = deque()
        rest = iter(items)
        while portion := list(itertools.islice(rest, ITEMS_PER_TASK)):
            pending.append(task.remote(shared_function, portion))
            if len(pending) >= TASKS_PER_CPU * cpus:
                yield from _result(pending.popleft())
        while pending:
            yield from _result(pending.popleft())


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
    is_file: Any = ray.remote(num_cpus=0)(Path.is_file)
    answers = {}
    for node in ray.nodes():
        if node["Alive"]:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            address = node["NodeManagerAddress"]
            answers[address] = is_file.options(scheduling_strategy=on_node).remote(needs)
    blind = [address for address, answer in answers.items() if not _result(answer)]
    if blind:
        raise DataError(
            f"{needs} is not visible on {', '.join(blind)}; put the images where every node of the "
            "cluster mounts them, or use this machine alone: unset RAY_ADDRESS, leave out --cluster"
        )
