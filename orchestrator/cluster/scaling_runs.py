"""Short runs one after the other in one session on the cluster."""

from collections.abc import Iterator, Sequence

from orchestrator.cluster.ray_session import missing_resources, resources_of, training_session
from orchestrator.cluster.ray_trainer import train_connected
from orchestrator.config.job import ClusterSection
from orchestrator.errors import EnvironmentProblem, Stopped
from orchestrator.runs.run_context import RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.training.loop import Outcome


def train_each(contexts: Sequence[RunContext]) -> Iterator[tuple[RunContext, Outcome]]:
    """Train each run in turn and yield it with its outcome; the first has the fewest workers.

    Raises:
        EnvironmentProblem: the cluster is out of reach, or has no room for all workers of one of
            the runs; then none has started.
        Stopped: the user stopped it.
    """
    stop = StopRequest()
    with training_session(contexts[0].job):
        for context in contexts:
            _check_room(context.job.cluster)
        with stop.handle_signals():
            for context in contexts:
                outcome = train_connected(context, lambda report: None, stop)
                if stop.requested:
                    raise Stopped("stopped; nothing was written")
                yield context, outcome


def _check_room(cluster: ClusterSection) -> None:
    """Raise EnvironmentProblem if the cluster has no room for all workers at a time."""
    for kind, needed, available in missing_resources(cluster, cluster.max_workers):
        most = int(available // resources_of(cluster)[kind])
        raise EnvironmentProblem(
            f"{cluster.max_workers} workers need {needed:g} {kind}s and the cluster has "
            f"{available:g}; use at most --workers {most}, or add nodes"
        )
