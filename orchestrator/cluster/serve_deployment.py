"""Serve a model with Ray Serve: the application of orchestrator.serving in several replicas."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt
from ray import serve
from ray.serve.schema import ApplicationStatus
from starlette.types import ASGIApp

from orchestrator.cluster.ray_session import ray_session
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem
from orchestrator.serving.app import load_app
from orchestrator.serving.limits import Limits
from orchestrator.serving.service_options import ServiceOptions
from orchestrator.serving.stop_signal import stop_signal

APPLICATION = "orchestrator"
"""Name of the application in Ray Serve."""
ALTERNATIVE = "serve from this machine: leave --cluster out"
CHECK_S = 5.0
"""Seconds between two looks at the application."""


class ReplicaOptions(BaseModel):
    """How many replicas serve, and what each has."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min_replicas: PositiveInt = 1
    """Replicas that are always there."""
    max_replicas: PositiveInt = 1
    """Replicas under load."""
    requests_per_replica: PositiveInt = 32
    """Requests under way in a replica, above which another is started."""
    cpus: NonNegativeFloat = 1
    """CPUs that Ray reserves for a replica."""
    gpus: NonNegativeFloat = 0
    """GPUs of a replica."""


def make_application(
    service: ServiceOptions, replicas: ReplicaOptions, host: str
) -> serve.Application:
    """Return the application for ``serve.run``.

    Each replica loads the model where it runs, follows the alias by itself, and reads the token
    from its own machine's file: no secret passes through Ray.

    Args:
        host: that Ray Serve listens on, which decides who may ask without a token.
    """

    def build() -> ASGIApp:
        return load_app(service.make_service(), service.access(host))

    deployment = serve.deployment(
        name="model",
        # The application refuses by itself, with 429; by default Serve takes 5 at a time, which
        # would be the largest batch.
        max_ongoing_requests=Limits().waiting,
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": max(replicas.min_replicas, replicas.max_replicas),
            "target_ongoing_requests": replicas.requests_per_replica,
        },
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
    )(serve.ingress(build)())
    return deployment.bind()


def build_application(arguments: Mapping[str, Any]) -> serve.Application:
    """Return the application of a deployment file, such as a RayService's.

    ``import_path: orchestrator.cluster.serve_deployment:build_application``; its ``args`` are
    ``service`` and ``replicas``, as ServiceOptions and ReplicaOptions, and ``host``.
    """
    service = ServiceOptions.model_validate(arguments["service"])
    replicas = ReplicaOptions.model_validate(arguments.get("replicas", {}))
    return make_application(service, replicas, arguments.get("host", "0.0.0.0"))


def serve_on_cluster(
    service: ServiceOptions, replicas: ReplicaOptions, host: str, port: int
) -> None:
    """Serve on the cluster of RAY_ADDRESS until this process is interrupted.

    Raises EnvironmentProblem if the cluster is out of reach, or a replica cannot start.
    """
    service.access(host)  # before anything is started
    service.check()
    with ray_session(ALTERNATIVE):
        serve.start(http_options={"host": host, "port": port, "location": "HeadOnly"})
        try:
            _deploy(make_application(service, replicas, host))
            log_info(f"serving {service.model} at http://{host}:{port}/; stop with Ctrl-C")
            with stop_signal() as stopped:
                while not stopped.wait(CHECK_S):
                    _check()
        finally:
            serve.shutdown()


def _deploy(application: serve.Application) -> None:
    """Deploy, and wait until a replica has loaded the model."""
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:  # Serve gives up after three failed starts
        raise EnvironmentProblem(f"the service could not be started: {_reason()}") from error


def _check() -> None:
    """Raise EnvironmentProblem if the application has failed."""
    status = serve.status().applications[APPLICATION].status
    if status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
        raise EnvironmentProblem(f"the service has failed on the cluster: {_reason()}")


def _reason() -> str:
    """Return the last lines of what Serve says about the application, on one line."""
    found = serve.status().applications[APPLICATION]
    details = [found.message, *(each.message for each in found.deployments.values())]
    return " ".join(" ".join(details).split())[-500:]
