"""Short runs one after the other on one connection to the cluster."""

from collections.abc import Iterator, Sequence

import ray

from orchestrator.cluster.ray_trainer import connection, resources_of, train_connected
from orchestrator.config.job import ClusterSection
from orchestrator.errors import EnvironmentProblem, Stopped
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.worker_setup import Setup
from orchestrator.training.loop import Outcome


def train_each(setups: Sequence[Setup]) -> Iterator[tuple[Setup, Outcome]]:
    """Each of ``setups`` and how its training ended, in turn; the first has the fewest workers.

    Raises:
        EnvironmentProblem: there is no cluster, or one without room for all workers of one of
            them; none has begun then.
        Stopped: someone stopped it.
    """
    stop = StopRequest()
    with connection(setups[0].job):
        for setup in setups:
            _check_room(setup.job.cluster)
        with stop.listening():
            for setup in setups:
                outcome = train_connected(setup, lambda report: None, stop)
                if stop.asked:
                    raise Stopped("stopped; nothing was written")
                yield setup, outcome


def _check_room(cluster: ClusterSection) -> None:
    """Raise EnvironmentProblem if the connected cluster is too small: workers must not share."""
    have = ray.cluster_resources()
    for kind, per_worker in resources_of(cluster).items():
        needed = per_worker * cluster.max_workers
        if have.get(kind, 0) < needed:
            most = int(have.get(kind, 0) // per_worker)
            raise EnvironmentProblem(
                f"{cluster.max_workers} workers need {needed:g} {kind}s and the cluster has "
                f"{have.get(kind, 0):g}; give --workers up to {most}, or add machines"
            )
