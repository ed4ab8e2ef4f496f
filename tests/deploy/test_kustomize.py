"""Overlays in deploy/kubernetes, built by kustomize: schemas, images and scheduling of pods."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from support.kustomize import OVERLAYS, SERVED, build, find, find_group, needs_kustomize
from support.manifests import ROOT, needs_crds, pods, schema_errors, security_problems


@needs_kustomize
@needs_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schemas_accept_every_document_of(overlay: str) -> None:
    documents = build(overlay)
    found = {
        f"{d['kind']} {d['metadata']['name']}": errors
        for d in documents
        if (errors := schema_errors(d))
    }
    assert found == {}
    assert {d["kind"] for d in documents} >= {"RayCluster", "StatefulSet", "NetworkPolicy"}
    assert all(d["metadata"].get("namespace") == "orchestrator" for d in documents[1:])
    assert [problem for document in documents for problem in security_problems(document)] == []


@needs_kustomize
@needs_crds
@pytest.mark.parametrize("folder", SERVED)
def test_the_schemas_accept_what_serves_a_model_and_its_image_is_that_of_the_version(
    folder: str,
) -> None:
    documents = build(folder)
    assert {d["metadata"]["name"]: schema_errors(d) for d in documents if schema_errors(d)} == {}
    assert [problem for document in documents for problem in security_problems(document)] == []
    assert all(d["metadata"]["namespace"] == "orchestrator" for d in documents)
    images = {
        container["image"]
        for document in documents
        for _, template in pods(document)
        for container in template["spec"]["containers"]
    }
    assert images == {f"orchestrator:{project_version()}"}


@needs_kustomize
@pytest.mark.parametrize("folder", SERVED)
def test_what_serves_a_model_is_added_to_an_overlay_and_is_part_of_none(folder: str) -> None:
    added = {(d["kind"], d["metadata"]["name"]) for d in build(folder)}
    for overlay in OVERLAYS:
        assert not added & {(d["kind"], d["metadata"]["name"]) for d in build(overlay)}


def project_version() -> str:
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found is not None
    return found[1]


def head(document: dict[str, Any]) -> Any:
    return document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


@needs_kustomize
@needs_crds
@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("RayCluster", "orchestrator", lambda d: d["spec"].update(tlsOption={})),
        ("RayCluster", "orchestrator", lambda d: d["spec"]["authOptions"].update(mode="tokens")),
        ("RayCluster", "orchestrator", lambda d: head(d).update(resource={})),
        ("RayCluster", "orchestrator", lambda d: head(d)["lifecycle"]["preStop"].update(run=1)),
        (
            "RayCluster",
            "orchestrator",
            lambda d: head(d)["livenessProbe"].update(periodSeconds="5"),
        ),
        ("RayCluster", "orchestrator", lambda d: d["metadata"].update(label={})),
        ("RayCluster", "orchestrator", lambda d: d["spec"].pop("headGroupSpec")),
        ("NetworkPolicy", "postgres", lambda d: d["spec"].update(ingres=[])),
        ("Deployment", "mlflow", lambda d: d["spec"]["template"]["spec"].update(volume=[])),
        ("StatefulSet", "redis", lambda d: d["spec"].pop("selector")),
        ("Service", "mlflow", lambda d: d["spec"]["ports"][0].update(port="http")),
        ("RayService", "model", lambda d: d["spec"].update(serveConfig="")),
        ("PodDisruptionBudget", "serve", lambda d: d["spec"].update(minAvailabl=1)),
    ],
)
def test_the_schemas_reject_an_invalid_field(
    kind: str, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    documents = [document for folder in ("base", *SERVED) for document in build(folder)]
    document = find(documents, kind, name)
    assert schema_errors(document) == []
    change(document)
    assert len(schema_errors(document)) == 1


@needs_kustomize
def test_every_ray_pod_and_mlflow_have_the_tag_of_the_current_version() -> None:
    images = [
        container["image"]
        for document in build("base")
        for _, template in pods(document)
        for container in template["spec"]["containers"]
    ]
    assert images.count(f"orchestrator:{project_version()}") == 4
    assert all(":" in image for image in images)


@needs_kustomize
def test_the_small_overlay_has_no_gpus_and_fits_its_limits() -> None:
    small = build("overlays/small")
    groups = find(small, "RayCluster", "orchestrator")["spec"]["workerGroupSpecs"]
    assert [(g["groupName"], g["minReplicas"], g["maxReplicas"]) for g in groups] == [("cpu", 1, 2)]
    assert "nvidia.com/gpu" not in str(small)
    (template,) = (
        t for where, t in pods(find(small, "RayCluster", "orchestrator")) if "cpu" in where
    )
    limits = template["spec"]["containers"][0]["resources"]["limits"]
    assert int(groups[0]["rayStartParams"]["num-cpus"]) < int(limits["cpu"])


@needs_kustomize
def test_gpu_workers_run_on_gpu_machines_with_one_gpu_each() -> None:
    gpu = find_group(build("overlays/gpu"), "gpu")
    pod = gpu["template"]["spec"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (1, 8)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert schedulable(pod, {"nvidia.com/gpu.present": "true"}, ["nvidia.com/gpu"])
    assert not schedulable(pod, {}, [])
    assert find_group(build("overlays/gpu"), "cpu")["minReplicas"] == 0


SPOT: tuple[tuple[dict[str, str], list[str]], ...] = (
    ({"cloud.google.com/gke-spot": "true"}, ["cloud.google.com/gke-spot"]),
    ({"eks.amazonaws.com/capacityType": "SPOT"}, []),
    (
        {"kubernetes.azure.com/scalesetpriority": "spot"},
        ["kubernetes.azure.com/scalesetpriority"],
    ),
    ({"karpenter.sh/capacity-type": "spot"}, ["karpenter.sh/capacity-type"]),
)
ON_DEMAND: tuple[dict[str, str], ...] = (
    {},
    {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    {"karpenter.sh/capacity-type": "on-demand"},
)


def schedulable(pod: dict[str, Any], labels: dict[str, str], taints: list[str]) -> bool:
    """Whether the scheduler may place ``pod`` on a node with these labels and taints."""
    if any(labels.get(key) != value for key, value in pod.get("nodeSelector", {}).items()):
        return False
    if any(taint not in {t["key"] for t in pod.get("tolerations", [])} for taint in taints):
        return False
    terms = (
        pod.get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        .get("nodeSelectorTerms")
    )
    return terms is None or any(
        all(
            (labels.get(e["key"]) in e["values"]) == (e["operator"] == "In")
            for e in term["matchExpressions"]
        )
        for term in terms
    )


@needs_kustomize
def test_spot_workers_run_on_spot_machines_and_the_head_does_not() -> None:
    spot = build("overlays/spot")
    cluster = find(spot, "RayCluster", "orchestrator")
    placed = {where.split()[-1]: template["spec"] for where, template in pods(cluster)}
    for labels, taints in SPOT:
        assert schedulable(placed["cpu"], labels, taints)
        assert schedulable(placed["gpu"], labels, [*taints, "nvidia.com/gpu"])
        assert not schedulable(placed["head"], labels, [])
    for labels in ON_DEMAND:
        assert schedulable(placed["head"], labels, [])
        assert not schedulable(placed["cpu"], labels, [])
        assert not schedulable(placed["gpu"], labels, [])
