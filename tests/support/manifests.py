"""Validate Kubernetes documents: strict schemas, and security of pods."""

import copy
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.34"
"""Version of the schemas of Kubernetes."""
CRDS = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crds")
"""Folder with KubeRay 1.7's ray.io_*.yaml, which are not part of this repository."""
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Loader for YAML 1.1, which kubectl reads."""

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(),
    reason="no CRDs of KubeRay: set KUBERAY_CRDS to a folder with ray.io_rayclusters.yaml and the "
    "others from helm-chart/kuberay-operator/crds of KubeRay 1.7",
)


def read_documents(text: str) -> list[dict[str, Any]]:
    """Parse the documents in ``text`` as kubectl does."""
    return [document for document in yaml.load_all(text, Loader=Loader) if document]


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Find what an API server would reject in ``document``, or silently drop from it."""
    if document["apiVersion"] == "ray.io/v1":
        found = jsonschema.Draft202012Validator(_crd(document["kind"])).iter_errors(document)
        return [f"{error.json_path}: {error.message}" for error in found]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


@functools.cache
def _crd(kind: str) -> dict[str, Any]:
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, Loader=Loader)["spec"]["versions"]
    schema = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    strict: dict[str, Any] = _forbid_unknown_fields(copy.deepcopy(schema))
    strict["properties"]["metadata"] = {
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
            "namespace": {"type": "string"},
            "labels": {"additionalProperties": {"type": "string"}},
            "annotations": {"additionalProperties": {"type": "string"}},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
    strict["properties"]["kind"] = {"const": kind}
    return strict


def _forbid_unknown_fields(schema: Any) -> Any:
    """Convert to a JSON Schema that rejects unknown fields, which the server would prune."""
    if isinstance(schema, list):
        return [_forbid_unknown_fields(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _forbid_unknown_fields(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a description and the pod template of each pod in ``document``."""
    kind, spec = document["kind"], document.get("spec", {})
    name = f"{kind} {document['metadata']['name']}"
    if kind == "RayCronJob":
        spec = spec["jobTemplate"]
    if kind in ("RayJob", "RayCronJob"):
        spec = spec.get("rayClusterSpec", {})
    if kind == "RayService":
        spec = spec["rayClusterConfig"]
    if kind in ("RayJob", "RayCronJob", "RayCluster", "RayService"):
        if spec:
            yield f"{name} head", spec["headGroupSpec"]["template"]
        for group in spec.get("workerGroupSpecs", []):
            yield f"{name} {group['groupName']}", group["template"]
    elif "template" in spec:
        yield name, spec["template"]


_SECRET_NAME = re.compile(r"(?i)passw(?!ord_file)|secret|token|credential|key(_id)?$")


def security_problems(document: dict[str, Any]) -> Iterator[str]:
    """Find insecure settings of pods in ``document``, and secrets in plain text."""
    if document["kind"] == "Secret":
        yield "a Secret must be created from files, and is not part of manifests"
    for where, template in pods(document):
        pod = template["spec"]
        security = pod.get("securityContext", {})
        if not (security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0):
            yield f"{where}: may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: has no seccomp profile"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: has a token of the Kubernetes API"
        if pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
            yield f"{where}: uses the host's namespaces"
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{where}: mounts the host's {volume['hostPath']}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{where}: volume {volume['name']} has no size limit"
        names = {volume["name"] for volume in pod.get("volumes", [])}
        names |= {c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            yield from _container_problems(f"{where} {container['name']}", container, names)
    options = document.get("spec", {}).get("autoscalerOptions")
    if options is not None:
        yield from _container_problems("autoscaler", options, None)


def _container_problems(
    where: str, container: Mapping[str, Any], volumes: set[str] | None
) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: may gain privileges"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{where}: keeps capabilities"
    if security.get("readOnlyRootFilesystem") is not True:
        yield f"{where}: has a writable root"
    for resource in ("cpu", "memory"):
        for kind in ("requests", "limits"):
            if resource not in container.get("resources", {}).get(kind, {}):
                yield f"{where}: has no {kind} for {resource}"
    for variable in container.get("env", []):
        if "value" in variable and _SECRET_NAME.search(variable["name"]):
            yield f"{where}: {variable['name']} holds a secret in plain text"
    for mount in container.get("volumeMounts", []):
        if volumes is not None and mount["name"] not in volumes:
            yield f"{where}: mounts {mount['name']}, which is not a volume"


def references(document: dict[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Yield (Secret or ConfigMap, name, key or None for all) that ``document`` refers to."""
    for value in _mappings(document):
        for kind, key_reference, from_reference, volume in (
            ("Secret", "secretKeyRef", "secretRef", "secret"),
            ("ConfigMap", "configMapKeyRef", "configMapRef", "configMap"),
        ):
            if isinstance(found := value.get(key_reference), dict):
                yield kind, found["name"], found["key"]
            if isinstance(found := value.get(from_reference), dict):
                yield kind, found["name"], None
            if isinstance(found := value.get(volume), dict):
                yield kind, found.get("secretName") or found["name"], None


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _mappings(inner)
