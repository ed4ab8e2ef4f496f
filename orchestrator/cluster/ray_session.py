"""Connect this process to a Ray cluster."""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.addresses import is_loopback
from orchestrator.cluster.ray_compat import (
    PackageJobConfig,
    StartupErrors,
    ask_head,
    leave_out_uploaded_folder,
    masked_command_line,
    on_loopback,
    use_loopback_addresses,
)
from orchestrator.cluster.ray_token import protect_token
from orchestrator.config.job import ClusterSection, Job
from orchestrator.config.rules import training_places
from orchestrator.config.yaml_source import join_path
from orchestrator.diagnostics import temp_folder
from orchestrator.diagnostics.doctor import require_ray_cluster
from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.runs.driver import local_gpus

HEAD_TIMEOUT_S = 20.0
"""Time limit for the first answer of a cluster's head."""
LISTEN_TIMEOUT_S = 5.0

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
    leave_out_uploaded_folder(os.environ)
    protect_token(os.environ)
    with contextlib.ExitStack() as stack:
        if address := os.environ.get("RAY_ADDRESS"):
            _require_answer(address)
            options = {"address": address, "logging_level": logging.WARNING}
        else:
            options = {"address": "local", "logging_level": logging.ERROR}
            options |= {"num_cpus": local_cpus, "include_dashboard": False}
            stack.enter_context(on_loopback())
            options |= {"_temp_dir": stack.enter_context(temp_folder.private_folder())}
        _connect(options, alternative)
        stack.callback(ray.shutdown)
        yield


def _connect(options: dict[str, Any], alternative: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    # Inherited by Ray's processes: those of this terminal outlive it until the run has saved.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with masked_command_line():
            ray.init(log_to_driver=False, job_config=PackageJobConfig(), **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        if os.environ.get("RAY_ADDRESS"):
            raise EnvironmentProblem(
                f"cannot reach the Ray cluster at {mask(os.environ['RAY_ADDRESS'])}: {reason}; "
                f"check RAY_ADDRESS, or {alternative}"
            ) from error
        raise EnvironmentProblem(
            f"cannot start Ray on this machine: {reason}; check the space and the permissions of "
            f"{temp_folder.default_folder(os.environ)}, /dev/shm and HOME/.ray, or {alternative}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray replaces it and leaves its own
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _require_answer(address: str) -> None:
    """Raise EnvironmentProblem if a head listens at ``host:port`` and does not answer.

    Sets Ray to loopback addresses where the head listens on them alone.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:  # `auto`; Ray's client has its bounds
        return
    if is_loopback(host.strip("[]")) and not _listens(ray.util.get_node_ip_address(), int(port)):
        use_loopback_addresses()
    refusal = ask_head(address, HEAD_TIMEOUT_S)
    if refusal is None:
        raise EnvironmentProblem(
            f"{mask(address)} accepts connections but does not answer as a Ray head within "
            f"{HEAD_TIMEOUT_S:.0f} s; check that RAY_ADDRESS is the address of its GCS (port 6379 "
            "by default), and that both sides have the same version of Ray, RAY_AUTH_MODE and "
            "RAY_USE_TLS"
        )
    if "Unauthenticated" in refusal or "AuthToken" in refusal:
        raise EnvironmentProblem(
            f"the Ray cluster at {mask(address)} requires a token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's token"
        )


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), LISTEN_TIMEOUT_S).close()
    except OSError:
        return False
    return True


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


@contextlib.contextmanager
def cluster_gpus(job: Job) -> Iterator[int]:
    """Give the number of GPUs of the cluster that ``job`` runs on; stay connected meanwhile.

    Without RAY_ADDRESS, these are the GPUs of this machine, where the cluster will be started.

    Raises:
        EnvironmentProblem: the cluster is out of reach.
    """
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        with local_gpus(job) as num_gpus:
            yield num_gpus
        return
    with ray_session("train without Ray: orchestrator run --local"):
        yield int(ray.cluster_resources().get("GPU", 0))


def resources_of(cluster: ClusterSection) -> dict[str, float]:
    """Return the resources that one worker needs."""
    gpus = {"GPU": float(cluster.gpus)} if cluster.gpus else {}
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


def start_actor(kind: type, *arguments: Any, max_restarts: int = 0) -> Any:
    """Start an actor on the driver's node, without which the job is lost anyway.

    Calls of a lost actor wait until Ray has started it again, at most ``max_restarts`` times.

    Raises:
        EnvironmentProblem: Ray's processes on this node fail while they start.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    errors = StartupErrors()
    actor_class: Any = ray.remote(kind)
    actor = actor_class.options(
        num_cpus=0,
        scheduling_strategy=here,
        max_restarts=max_restarts,
        max_task_retries=-1 if max_restarts else 0,
    ).remote(*arguments)
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
    sets = ((join_path(path), place) for path, place in training_places(job).items())
    places = [("storage", job.storage), *sets, ("tracking.uri", job.tracking.uri)]
    for name, place in places:
        if place.startswith(("sqlite", "file:")) or "://" not in place:
            logger.warning(
                "%s is on one machine and the cluster has %d; unless all of them mount it there, "
                "use a server, or a bucket such as s3://bucket/prefix: %s",
                name, num_nodes, mask(place),
            )  # fmt: skip
