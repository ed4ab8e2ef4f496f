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
    try:
        with _keep_handler(signal.SIGTERM):
            ray.init(log_to_driver=False, job_config=PackageJobConfig(), **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot reach the Ray cluster at {address or 'this machine'}: {error}; "
            f"check RAY_ADDRESS, or {alternative}"
        ) from error
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
    needed = cluster.min_workers * cluster.cpus_per_worker
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    alternative = "train without Ray: orchestrator run --local"
    with ray_session(alternative, max(needed, os.cpu_count() or 1)):
        _check_resources(cluster, needed, is_local=is_local)
        _warn_of_local_places(job)
        yield


def resources_of(cluster: ClusterSection) -> dict[str, float]:
    """Return the resources that one worker needs."""
    gpus = {"GPU": float(cluster.gpus_per_worker)} if cluster.gpus_per_worker else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpus}


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


@contextlib.contextmanager
def _keep_handler(number: signal.Signals) -> Iterator[None]:
    """Restore a signal's handler afterwards: Ray replaces it and leaves its own."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _check_resources(cluster: ClusterSection, cpus: int, *, is_local: bool) -> None:
    have = ray.cluster_resources()
    for kind, needed in (("CPU", cpus), ("GPU", cluster.min_workers * cluster.gpus_per_worker)):
        if have.get(kind, 0) >= needed:
            continue
        what = (
            f"{cluster.min_workers} workers need {needed} {kind}s and the cluster has "
            f"{have.get(kind, 0):g}"
        )
        if is_local:
            raise EnvironmentProblem(
                f"{what}; reduce cluster.workers or cluster.{kind.lower()}s_per_worker"
            )
        logger.warning("%s; waiting until nodes join", what)


def _warn_of_local_places(job: Job) -> None:
    """Warn of places that only one machine can see, if the cluster has several."""
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    places = {
        "storage": job.storage,
        "data.train": job.data.train,
        "tracking.uri": job.tracking.uri,
    }
    for name, place in places.items():
        is_local = place.startswith(("sqlite:", "file:")) or "://" not in place
        if num_nodes > 1 and is_local:
            logger.warning(
                "%s is on one machine and the cluster has %d; unless all of them mount it there, "
                "use a server or s3://bucket/prefix: %s",
                name,
                num_nodes,
                mask(place),
            )
