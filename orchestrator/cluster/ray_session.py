"""Connect this process to a Ray cluster."""

import concurrent.futures
import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.ray_compat import (
    PackageJobConfig,
    StartupErrors,
    leave_out_uploaded_folder,
    log_folder,
    use_loopback,
)
from orchestrator.cluster.ray_refusals import describe_refusal
from orchestrator.config.job import ClusterSection, Job
from orchestrator.diagnostics.doctor import require_ray_cluster
from orchestrator.diagnostics.ray_address import (
    LOOPBACK_VARIABLE,
    RayAddress,
    find_token,
    is_on_loopback_only,
    names_cluster,
)
from orchestrator.diagnostics.ray_folder import choose_ray_folder
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain
from orchestrator.redaction import mask

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 120
"""Ray gives up after 60 s where this machine is no node of the cluster."""
NOTICE_S = 15
START_TIMEOUT_S = 300
"""Limit for the first process of Ray on this node; its imports take a minute on a busy machine."""


@contextlib.contextmanager
def ray_session(alternative: str, local_cpus: int | None = None) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or to one that is started for this process alone.

    A connection that exists is used and left open. Signals keep their handlers.

    Args:
        alternative: what to do without the cluster; the end of the error's text.
        local_cpus: CPUs of the cluster that is started where RAY_ADDRESS is not set; None, where
            RAY_ADDRESS is always set.

    Raises:
        EnvironmentProblem: the cluster is out of reach, or Ray cannot start here.
        TryAgain: the cluster was lost.
    """
    if ray.is_initialized():
        yield
        return
    address = require_ray_cluster(os.environ)
    leave_out_uploaded_folder(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            _start(local_cpus)
        else:
            _connect(address)
    except OrchestratorError:
        raise
    except Exception as error:  # Ray raises bare ones too
        line, advice = describe_refusal(error)
        if address is None:
            what = f"Ray does not start on this machine: {line}"
        else:
            what = f"cannot use the Ray cluster at {mask(os.environ['RAY_ADDRESS'])}: {line}"
            advice = advice or "check RAY_ADDRESS"
        raise EnvironmentProblem("; ".join(filter(None, [what, advice, alternative]))) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray replaces it and leaves its own
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise  # an error of ours, in another process
    except ray.exceptions.RayError as error:
        line, _ = describe_refusal(error)
        raise TryAgain(f"the Ray cluster failed: {type(error).__name__}: {line}") from error
    finally:
        ray.shutdown()


def _start(num_cpus: int | None) -> None:
    """Start a cluster for this process alone; it ends with the thread that starts it."""
    folder = choose_ray_folder(os.environ)
    if not find_token(os.environ) and not _can_keep_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(
        "local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, job_config=PackageJobConfig(),
        _temp_dir=None if folder is None else str(folder),
    )  # fmt: skip


def _can_keep_token() -> bool:
    """Whether Ray can write the token of a new cluster to ~/.ray."""
    folder = Path(os.path.expanduser("~/.ray"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _connect(address: RayAddress) -> None:
    """Connect to a cluster, in a thread: a call into Ray may never return."""
    if is_on_loopback_only(address, os.environ):
        use_loopback(LOOPBACK_VARIABLE)
    connected = in_thread(
        lambda: ray.init(
            os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR,
            job_config=PackageJobConfig(),
        ),
        "ray-connect",
    )  # fmt: skip
    done = concurrent.futures.wait([connected], timeout=NOTICE_S).done
    if not done:
        logger.warning("waiting for the Ray cluster, for up to %d s", CONNECT_TIMEOUT_S)
        done = concurrent.futures.wait([connected], timeout=CONNECT_TIMEOUT_S - NOTICE_S).done
    if not done:
        raise TimeoutError(f"no connection within {CONNECT_TIMEOUT_S} s")
    connected.result()


@contextlib.contextmanager
def training_session(job: Job) -> Iterator[None]:
    """Connect to a cluster for the workers of ``job``; see ``ray_session``.

    Raises:
        EnvironmentProblem: the cluster is out of reach, or was started here and is too small.
    """
    cluster, is_local = job.cluster, not names_cluster(os.environ.get("RAY_ADDRESS", ""))
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
    start = time.monotonic()
    while not ray.wait([ready], timeout=1)[0]:
        if time.monotonic() - start > START_TIMEOUT_S:
            raise EnvironmentProblem(
                f"Ray has started no process on this node for {START_TIMEOUT_S} s; check the load "
                f"of this machine, and Ray's logs in {log_folder()}"
            )
        if line := errors.newest():
            raise EnvironmentProblem(
                f"Ray's processes on this node fail while they start: {line}; check the packages "
                "and PYTHONPATH of the cluster, and the job's runtime environment"
            )
    ray.get(ready)
    return actor


def in_thread(call: Callable[[], Any], name: str) -> "concurrent.futures.Future[Any]":
    """Run ``call`` in a daemon thread.

    A driver that is interrupted, or whose cluster is gone, exits at once without waiting for it.
    """
    ended: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended


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
        if place.startswith(("sqlite:", "file:")) or "://" not in place:
            logger.warning(
                "%s is on one machine and the cluster has %d; unless all of them mount it there, "
                "use a server or s3://bucket/prefix: %s",
                name, num_nodes, mask(place),
            )  # fmt: skip
