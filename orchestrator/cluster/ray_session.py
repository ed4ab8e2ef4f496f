"""Connect this process to a Ray cluster."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.ray_compat import (
    PackageJobConfig,
    StartupErrors,
    leave_out_uploaded_folder,
)
from orchestrator.config.job import ClusterSection, Job
from orchestrator.diagnostics.doctor import require_ray_cluster
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(alternative: str, local_cpus: int | None = None) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or to one that is started for this process alone.

    A connection that exists is used and left open. Signals keep their handlers.

    Args:
        alternative: what to do without the cluster; the end of the error's text.
        local_cpus: CPUs of the cluster that is started where RAY_ADDRESS is not set; None, where
            RAY_ADDRESS is always set.

    Raises:
        EnvironmentProblem: the cluster is out of reach.
    """
    if ray.is_initialized():
        yield
        return
    require_ray_cluster(os.environ)
    address = os.environ.get("RAY_ADDRESS")
    leave_out_uploaded_folder(os.environ)
    options: dict[str, Any] = {"address": address, "logging_level": logging.WARNING}
    if not address:
        options = {"address": "local", "logging_level": logging.ERROR}
        options |= {"num_cpus": local_cpus, "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, job_config=PackageJobConfig(), **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot reach the Ray cluster at {address or 'this machine'}: {error}; "
            f"check RAY_ADDRESS, or {alternative}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray replaces it and leaves its own
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def training_session(job: Job) -> Iterator[None]:
    """Connect to a cluster for the workers of ``job``; see ``ray_session``.

    Raises:
        EnvironmentProblem: the cluster is out of reach, or was started here and is too small.
    """
    cluster, is_local = job.cluster, not os.environ.get("RAY_ADDRESS")
    cpus = cluster.min_workers * cluster.cpus_per_worker
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    alternative = "train without Ray: orchestrator run --local"
    with ray_session(alternative, max(cpus, os.cpu_count() or 1)):
        _check_resources(cluster, is_local=is_local)
        _warn_of_local_places(job)
        yield


def resources_of(cluster: ClusterSection) -> dict[str, float]:
    """Return the resources that one worker needs."""
    gpus = {"GPU": float(cluster.gpus_per_worker)} if cluster.gpus_per_worker else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpus}


def missing_resources(
    cluster: ClusterSection, num_workers: int
) -> Iterator[tuple[str, float, float]]:
    """Yield what the cluster has too little of for the workers: kind, needed, available."""
    have = ray.cluster_resources()
    for kind, per_worker in resources_of(cluster).items():
        needed, available = per_worker * num_workers, have.get(kind, 0.0)
        if available < needed:
            yield kind, needed, available


def start_actor(kind: type, *arguments: Any) -> Any:
    """Start an actor on the driver's node, without which the job is lost anyway.

    Raises:
        EnvironmentProblem: Ray's processes on this node fail while they start.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    errors = StartupErrors()
    actor_class: Any = ray.remote(kind)
    actor = actor_class.options(num_cpus=0, scheduling_strategy=here).remote(*arguments)
    ready = actor.__ray_ready__.remote()
    while not ray.wait([ready], timeout=1)[0]:
        if line := errors.newest():
            raise EnvironmentProblem(
                f"Ray's processes on this node fail while they start: {line}; check the packages "
                "and PYTHONPATH of the cluster, and the job's runtime environment"
            )
    ray.get(ready)
    return actor


def _check_resources(cluster: ClusterSection, *, is_local: bool) -> None:
    for kind, needed, available in missing_resources(cluster, cluster.min_workers):
        what = (
            f"{cluster.min_workers} workers need {needed:g} {kind}s and the cluster has "
            f"{available:g}"
        )
        if is_local:
            raise EnvironmentProblem(
                f"{what}; reduce cluster.workers or cluster.{kind.lower()}s_per_worker"
            )
        logger.warning("%s; waiting until nodes join", what)


def _warn_of_local_places(job: Job) -> None:
    """Warn of places that only one machine can see, if the cluster has several."""
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes < 2:
        return
    data, uri = job.data.train, job.tracking.uri
    places = {"storage": job.storage, "data.train": data, "tracking.uri": uri}
    for name, place in places.items():
        if place.startswith(("sqlite", "file:")) or "://" not in place:
            logger.warning(
                "%s is on one machine and the cluster has %d; unless all of them mount it there, "
                "use a server or s3://bucket/prefix: %s",
                name, num_nodes, mask(place),
            )  # fmt: skip
