"""Network policies in deploy/kubernetes, evaluated as Kubernetes does."""

import ipaddress
from collections.abc import Iterator
from typing import Any

from support.kustomize import written

NAMESPACE, OTHER_NAMESPACE = "orchestrator", "another"
HEAD = {
    "ray.io/is-ray-node": "yes",
    "ray.io/node-type": "head",
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/part-of": "orchestrator",
}
WORKER = HEAD | {"ray.io/node-type": "worker"}
CLEANUP = HEAD | {"ray.io/node-type": "redis-cleanup"}
MLFLOW, POSTGRES, REDIS = (
    {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "orchestrator"}
    for name in ("mlflow", "postgres", "redis")
)
SERVE = {"app.kubernetes.io/name": "serve", "app.kubernetes.io/component": "serve"}
SERVE_WORKER = {
    "ray.io/is-ray-node": "yes",
    "ray.io/node-type": "worker",
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/component": "serve",
}
"""A worker of the RayService."""
SERVE_HEAD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
Pod = tuple[dict[str, str], dict[str, str]]
"""Labels of its namespace, and its own labels. An external address is a string."""


def own_pod(labels: dict[str, str]) -> Pod:
    return ({"kubernetes.io/metadata.name": NAMESPACE}, labels)


def pod_elsewhere(**namespace: str) -> Pod:
    labels = {key.replace("__", "/").replace("_", "."): value for key, value in namespace.items()}
    return ({"kubernetes.io/metadata.name": OTHER_NAMESPACE, **labels}, {})


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        (labels.get(e["key"]) in e["values"]) == (e["operator"] == "In") for e in expressions
    )


def matches(peer: dict[str, Any], target: Pod | str) -> bool:
    if isinstance(target, str) or "ipBlock" in peer:
        block = peer.get("ipBlock")
        if block is None or not isinstance(target, str):
            return False
        address = ipaddress.ip_address(target)
        nets = [ipaddress.ip_network(c) for c in (block["cidr"], *block.get("except", []))]
        inside = [address.version == net.version and address in net for net in nets]
        return inside[0] and not any(inside[1:])
    namespace, labels = target
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], namespace):
            return False
    elif namespace.get("kubernetes.io/metadata.name") != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), labels)


def allowed(
    policies: list[dict[str, Any]], source: Pod | str, target: Pod | str, port: int
) -> bool:
    """Whether the source's egress and the target's ingress policies allow a TCP connection."""

    def passes(pod: Pod | str, peer: Pod | str, direction: str, side: str) -> bool:
        if isinstance(pod, str) or pod[0]["kubernetes.io/metadata.name"] != NAMESPACE:
            return True
        relevant = [
            p["spec"]
            for p in policies
            if direction.title() in p["spec"]["policyTypes"]
            and selects(p["spec"]["podSelector"], pod[1])
        ]
        rules = [rule for spec in relevant for rule in spec.get(direction, [])]
        return not relevant or any(
            any(matches(p, peer) for p in rule[side])
            and any(q["port"] == port and q["protocol"] == "TCP" for q in rule["ports"])
            if "ports" in rule
            else any(matches(p, peer) for p in rule[side])
            for rule in rules
        )

    return passes(source, target, "egress", "to") and passes(target, source, "ingress", "from")


OPERATOR: Pod = (
    {"kubernetes.io/metadata.name": "kuberay-system"},
    {"app.kubernetes.io/name": "kuberay-operator"},
)
DNS: Pod = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"})
GUEST = pod_elsewhere()
CLIENT = pod_elsewhere(orchestrator_access__serve="true")
PROMETHEUS = pod_elsewhere(orchestrator_access__metrics="true")
INTERNET, METADATA = "93.184.215.14", "169.254.169.254"
ALLOWED: list[tuple[Pod | str, Pod | str, tuple[int, ...]]] = [
    (own_pod(WORKER), own_pod(HEAD), (6379, 8265, 10001, 40123)),
    (own_pod(HEAD), own_pod(WORKER), (40123,)),
    (own_pod(WORKER), own_pod(WORKER), (29500, 40123)),
    (OPERATOR, own_pod(HEAD), (8265,)),
    (pod_elsewhere(orchestrator_access__ray="true"), own_pod(HEAD), (8265, 10001)),
    (PROMETHEUS, own_pod(WORKER), (8080,)),
    (own_pod(HEAD), own_pod(MLFLOW), (5000,)),
    (own_pod(WORKER), own_pod(MLFLOW), (5000,)),
    (pod_elsewhere(orchestrator_access__mlflow="true"), own_pod(MLFLOW), (5000,)),
    (own_pod(MLFLOW), own_pod(POSTGRES), (5432,)),
    (own_pod(HEAD), own_pod(REDIS), (6379,)),
    (own_pod(CLEANUP), own_pod(REDIS), (6379,)),
    (own_pod(HEAD), INTERNET, (443, 6443)),
    (own_pod(WORKER), INTERNET, (443,)),
    (own_pod(MLFLOW), INTERNET, (443,)),
    *(
        (own_pod(pod), DNS, (53,))
        for pod in (HEAD, WORKER, MLFLOW, POSTGRES, REDIS, SERVE, SERVE_WORKER)
    ),
    *(
        (source, own_pod(pod), (8300,))
        for pod in (SERVE, SERVE_WORKER)
        for source in (CLIENT, PROMETHEUS)
    ),
    (own_pod(SERVE), own_pod(MLFLOW), (5000,)),
    (own_pod(SERVE_WORKER), own_pod(MLFLOW), (5000,)),
    (own_pod(SERVE_WORKER), own_pod(SERVE_HEAD), (6379, 40123)),
    (OPERATOR, own_pod(SERVE_HEAD), (8265,)),
]
DENIED: list[tuple[Pod | str, Pod | str, tuple[int, ...]]] = [
    *((GUEST, own_pod(pod), (5000, 5432, 6379, 8265, 10001, 8080, 8300, 40123))
      for pod in (HEAD, WORKER, MLFLOW, POSTGRES, REDIS, SERVE, SERVE_WORKER, SERVE_HEAD)),
    (OPERATOR, own_pod(HEAD), (10001, 6379)),
    (OPERATOR, own_pod(WORKER), (8265,)),
    (pod_elsewhere(orchestrator_access__mlflow="true"), own_pod(HEAD), (8265,)),
    (pod_elsewhere(orchestrator_access__ray="true"), own_pod(MLFLOW), (5000,)),
    (own_pod(WORKER), own_pod(REDIS), (6379,)),
    (own_pod(MLFLOW), own_pod(REDIS), (6379,)),
    (own_pod(WORKER), own_pod(POSTGRES), (5432,)),
    (own_pod(HEAD), own_pod(POSTGRES), (5432,)),
    (own_pod(MLFLOW), own_pod(HEAD), (8265,)),
    (own_pod(POSTGRES), own_pod(MLFLOW), (5000,)),
    (own_pod({}), own_pod(MLFLOW), (5000,)),
    (own_pod({}), INTERNET, (443,)),
    (GUEST, own_pod({}), (80,)),
    (own_pod(POSTGRES), INTERNET, (443,)),
    (own_pod(REDIS), INTERNET, (443,)),
    (own_pod(WORKER), INTERNET, (80, 22, 6443)),
    (own_pod(WORKER), METADATA, (80, 443)),
    (own_pod(HEAD), METADATA, (80, 443, 6443)),
    (CLIENT, own_pod(MLFLOW), (5000, 8300)),
    (CLIENT, own_pod(SERVE_HEAD), (8265, 8300, 10001)),
    (CLIENT, own_pod(SERVE_WORKER), (8080, 8265)),
    (own_pod({}), own_pod(SERVE), (8300,)),
    (own_pod(HEAD), own_pod(SERVE), (8300,)),
    (INTERNET, own_pod(SERVE), (8300,)),
    (own_pod(SERVE), own_pod(POSTGRES), (5432,)),
    (own_pod(SERVE), own_pod(REDIS), (6379,)),
    (own_pod(SERVE), own_pod(HEAD), (8265, 10001)),
    *((own_pod(pod), INTERNET, (443,)) for pod in (SERVE, SERVE_WORKER, SERVE_HEAD)),
]  # fmt: skip


def connections(
    table: list[tuple[Pod | str, Pod | str, tuple[int, ...]]],
) -> Iterator[tuple[Pod | str, Pod | str, int]]:
    return ((source, target, port) for source, target, ports in table for port in ports)


def violations(policies: list[dict[str, Any]]) -> list[tuple[Pod | str, Pod | str, int]]:
    """Required connections that are denied, and other connections that are allowed."""
    denied = [c for c in connections(ALLOWED) if not allowed(policies, *c)]
    return denied + [c for c in connections(DENIED) if allowed(policies, *c)]


def test_the_network_policies_allow_only_the_connections_that_are_needed() -> None:
    assert violations([d for d in written() if d["kind"] == "NetworkPolicy"]) == []


def test_every_network_policy_has_an_effect() -> None:
    policies = [d for d in written() if d["kind"] == "NetworkPolicy"]
    for policy in policies:
        others = [p for p in policies if p is not policy]
        assert violations(others), policy["metadata"]["name"]
