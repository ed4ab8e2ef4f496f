"""Find out that the cluster which this process is connected to is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from orchestrator.cluster.ray_compat import ended_node_process
from orchestrator.errors import OrchestratorError
from orchestrator.periodic import Periodic

POLL_S = 0.5


@contextmanager
def watch_cluster(on_lost: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_lost`` with the reason if a cluster that this process has started is lost.

    Nobody restarts it, and Ray itself would wait for a minute.
    """

    def check() -> None:
        name = ended_node_process()
        if name is not None:
            on_lost(f"its {name} has ended")

    with Periodic(check, POLL_S, name="ray-loss"):
        yield


def lost_cluster(error: BaseException) -> str | None:
    """Return why ``error`` says that the cluster was lost; None if it is another error."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(error, OrchestratorError) or not isinstance(cause, ray.exceptions.RayError):
        return None
    if isinstance(cause, ray.exceptions.RayActorError):
        return "a process that the run needs has ended and could not be started again"
    return type(cause).__name__
