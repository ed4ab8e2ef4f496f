"""Find out that the cluster which this process is connected to is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from orchestrator.cluster.ray_compat import NodeProcesses
from orchestrator.errors import OrchestratorError
from orchestrator.periodic import Periodic

POLL_S = 0.5


@contextmanager
def watch_cluster(on_lost: Callable[[str], None]) -> Iterator[None]:
    """Call ``on_lost`` with the reason once this process has lost its raylet, or its own GCS.

    Nobody starts these again, and Ray itself would wait for a minute.
    """
    processes = NodeProcesses()

    def check() -> None:
        if (name := processes.ended()) is not None:
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
