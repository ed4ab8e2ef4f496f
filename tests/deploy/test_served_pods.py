"""Pods of deploy/kubernetes/serve: what they run, and what they may read."""

import importlib
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cluster.serve_deployment import ReplicaOptions
from orchestrator.serving.access import is_private
from orchestrator.serving.http_server import DRAIN_S
from orchestrator.serving.service_options import ServiceOptions
from support.kustomize import find, written
from support.manifests import pods

PORT = 8300
FSGROUP_BITS = 0o440
"""What the kubelet adds to the mode of a file in a read-only volume of a pod with an fsGroup."""


def pod_of(kind: str, name: str, where: str = "") -> dict[str, Any]:
    found = [t["spec"] for at, t in pods(find(written(), kind, name)) if at.endswith(where)]
    assert len(found) == 1
    pod: dict[str, Any] = found[0]
    return pod


def readers() -> list[dict[str, Any]]:
    return [pod_of("Deployment", "serve"), pod_of("RayService", "model", " serve")]


@pytest.mark.parametrize("pod", readers(), ids=["deployment", "ray-service"])
def test_the_service_can_read_its_token_and_accepts_the_files_mode(pod: dict[str, Any]) -> None:
    (secret,) = (v["secret"] for v in pod["volumes"] if "secret" in v)
    assert [item["key"] for item in secret["items"]] == ["token"]
    security = pod["securityContext"]
    mode = secret["defaultMode"] | FSGROUP_BITS
    assert mode == 0o440, "what is written is what the kubelet makes of it"
    assert security["runAsUser"] != 0 != security["fsGroup"], "reads it as the group"
    assert is_private(mode, owner=0)


def token_path(pod: dict[str, Any]) -> str:
    (volume,) = (v for v in pod["volumes"] if "secret" in v)
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
    assert mount["readOnly"] is True
    return f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"


def test_the_command_of_the_deployment_is_understood_and_reads_the_mounted_token() -> None:
    container = pod_of("Deployment", "serve")["containers"][0]
    program, *arguments = container["command"] + container["args"]
    assert program == "orchestrator"
    assert arguments[arguments.index("--token-file") + 1] == token_path(
        pod_of("Deployment", "serve")
    )
    # There is no such token here, which is found before MLflow is asked.
    done = CliRunner().invoke(app, arguments)
    assert "/run/secrets/serve/token cannot be read" in str(done.exception), done.output
    listed = find(written(), "ConfigMap", "orchestrator-serve")["data"]
    assert arguments[1] == "$(MODEL)"
    assert "MODEL" in listed


def test_the_deployment_is_probed_and_reached_where_it_listens() -> None:
    container = pod_of("Deployment", "serve")["containers"][0]
    (port,) = container["ports"]
    assert port["containerPort"] == PORT
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness")}
    assert paths["readiness"] == {"path": "/ready", "port": port["name"]}
    assert paths["startup"] == container["livenessProbe"]["httpGet"] | {"path": "/health"}
    (entry,) = find(written(), "Service", "serve")["spec"]["ports"]
    assert (entry["port"], entry["targetPort"]) == (PORT, port["name"])


def test_requests_end_before_a_pod_of_the_deployment_does() -> None:
    pod = pod_of("Deployment", "serve")
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > sleep + DRAIN_S


def test_the_disruption_budget_and_the_service_select_the_pods_and_leave_one() -> None:
    deployment = find(written(), "Deployment", "serve")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    budget = find(written(), "PodDisruptionBudget", "serve")["spec"]
    service = find(written(), "Service", "serve")["spec"]
    for selector in (budget["selector"]["matchLabels"], service["selector"]):
        assert selector.items() <= labels
    assert 0 < budget["minAvailable"] < deployment["replicas"]


def test_the_ray_service_has_a_valid_application_with_the_mounted_token() -> None:
    spec = find(written(), "RayService", "model")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    built = getattr(importlib.import_module(module), name)(application.args)
    assert isinstance(built, serve.Application)
    service = ServiceOptions.model_validate(application.args["service"])
    assert str(service.token_file) == token_path(pod_of("RayService", "model", " serve"))
    replicas = ReplicaOptions.model_validate(application.args["replicas"])
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    room = group["replicas"] * int(group["rayStartParams"]["num-cpus"])
    assert replicas.max_replicas * replicas.cpus <= room
    assert application.args.keys() == {"service", "replicas", "host"}


def test_ray_serve_listens_on_the_port_that_kuberay_and_the_probe_look_at() -> None:
    spec = find(written(), "RayService", "model")["spec"]
    options = yaml.safe_load(spec["serveConfigV2"])["http_options"]
    assert options == {"host": "0.0.0.0", "port": PORT}
    for where in (" head", " serve"):
        container = pod_of("RayService", "model", where)["containers"][0]
        assert {"containerPort": PORT, "name": "serve"} in container["ports"]
    ready = pod_of("RayService", "model", " serve")["containers"][0]["readinessProbe"]
    assert ready["httpGet"] == {"path": "/-/healthz", "port": PORT}


def test_the_head_of_the_ray_service_has_neither_the_clients_token_nor_a_password() -> None:
    head = str(pod_of("RayService", "model", " head"))
    assert "orchestrator-serve" not in head
    assert "secretKeyRef" not in head
