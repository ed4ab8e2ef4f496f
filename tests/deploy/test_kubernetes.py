"""deploy/kubernetes: what kustomize makes of it, judged by the schemas and by what it must not do.

No cluster is at hand: nothing here has been run by Kubernetes.
"""

import copy
import functools
import ipaddress
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.kubernetes.pods import GRACE_S, NOTICE_S, SAVE_S, UNANSWERED_MS
from support.manifests import ROOT, complaints, faults, needs_crds, pods, read, references

FOLDER = ROOT / "deploy" / "kubernetes"
README = FOLDER / "README.md"
OVERLAYS = ("base", "overlays/small", "overlays/gpu", "overlays/spot")
KUSTOMIZE = next(
    (
        command
        for command in (["kustomize", "build"], ["kubectl", "kustomize"])
        if shutil.which(command[0])
    ),
    None,
)
needs_kustomize = pytest.mark.skipif(
    KUSTOMIZE is None, reason="neither kustomize nor kubectl is installed"
)


@functools.cache
def _built(overlay: str) -> tuple[dict[str, Any], ...]:
    assert KUSTOMIZE is not None
    done = subprocess.run(
        [*KUSTOMIZE, str(FOLDER / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(read(done.stdout))


def built(overlay: str) -> list[dict[str, Any]]:
    """The documents of an overlay, one's own copy."""
    return copy.deepcopy(list(_built(overlay)))


def written() -> list[dict[str, Any]]:
    """The documents of the base as they are in its files."""
    files = sorted((FOLDER / "base").glob("*.yaml"))
    return [d for f in files if f.name != "kustomization.yaml" for d in read(f.read_text())]


def one(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def group(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    groups = one(documents, "RayCluster", "orchestrator")["spec"]["workerGroupSpecs"]
    (found,) = (g for g in groups if g["groupName"] == name)
    return found


# What needs neither a tool nor a schema.


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/kustomization.yaml")), ids=str)
def test_all_that_a_kustomization_names_is_there_and_nothing_else(path: Path) -> None:
    (kustomization,) = read(path.read_text())
    named = {(path.parent / name).resolve() for name in kustomization["resources"]}
    assert all(found.exists() for found in named)
    assert all(read(found.read_text()) for found in named if found.is_file())
    there = {found.resolve() for found in path.parent.glob("*.yaml")} - {path.resolve()}
    assert there == {found for found in named if found.is_file()}


def test_no_pod_is_root_or_without_limits_and_no_secret_is_written_down() -> None:
    found = [fault for document in written() for fault in faults(document)]
    assert found == []
    assert len([pod for document in written() for pod in pods(document)]) == 6


def spoilt(change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The faults of the MLflow server after ``change`` to its pod."""
    document = one(written(), "Deployment", "mlflow")
    change(document["spec"]["template"]["spec"])
    return list(faults(document))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pod: pod["securityContext"].update(runAsUser=0), "may run as root"),
        (lambda pod: pod.pop("automountServiceAccountToken"), "gets a token"),
        (lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"), "no limits for"),
        (lambda pod: pod["containers"][0]["securityContext"].clear(), "may gain privileges"),
        (
            lambda pod: pod["containers"][0]["env"].append({"name": "PGPASSWORD", "value": "x"}),
            "PGPASSWORD holds a secret",
        ),
        (lambda pod: pod["volumes"].pop(), "is no volume"),
    ],
)
def test_the_judge_of_pods_sees_what_is_wrong(
    change: Callable[[dict[str, Any]], object], said: str
) -> None:
    assert spoilt(lambda pod: None) == []
    assert any(said in fault for fault in spoilt(change))


def test_every_secret_is_made_by_a_command_in_the_readme_and_every_config_map_is_there() -> None:
    made: dict[str, set[str]] = {}
    joined = README.read_text().replace("\\\n", " ")
    for name, rest in re.findall(r"kubectl create secret generic (\S+)(.*)", joined):
        made[name] = set(re.findall(r"--from-file=([^=\s]+)=", rest))
        for file in re.findall(r"--from-env-file=(\S+)", rest):
            made[name].add(f"all of {file}")
        assert "--from-literal" not in rest
    maps = {d["metadata"]["name"] for d in written() if d["kind"] == "ConfigMap"}
    for document in written():
        for kind, name, key in references(document):
            if kind == "ConfigMap":
                assert name in maps | {"kube-root-ca.crt"}
            else:
                assert name in made, f"{name} of {document['metadata']['name']}"
                assert key is None or key in made[name]
    assert set(made) == {"orchestrator-credentials", "mlflow", "postgres", "redis"}


def test_ray_is_the_one_that_the_image_is_built_from() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.search(r"^ray==(\S+)", lock, re.M)
    assert locked is not None
    assert one(written(), "RayCluster", "orchestrator")["spec"]["rayVersion"] == locked[1]


def test_a_pod_that_ends_waits_for_its_checkpoint_longer_than_a_spot_machine_gives_notice() -> None:
    for document in written():
        if document["kind"] != "RayCluster":
            continue
        for _, template in pods(document):
            assert template["spec"]["terminationGracePeriodSeconds"] == GRACE_S
    assert NOTICE_S < SAVE_S < GRACE_S


def test_a_node_that_does_not_answer_is_lost_as_soon_as_a_worker_that_hangs() -> None:
    cluster = one(written(), "RayCluster", "orchestrator")
    ((_, head),) = [pod for pod in pods(cluster) if pod[0].endswith(" head")]
    said = {"name": "RAY_health_check_timeout_ms", "value": str(UNANSWERED_MS)}
    assert said in head["spec"]["containers"][0]["env"]
    assert 5 * (UNANSWERED_MS / 1000 + 3) < 60, "five questions, three seconds apart"


# What kustomize makes of it.


@needs_kustomize
@needs_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_servers_would_take_every_document_of(overlay: str) -> None:
    documents = built(overlay)
    found = {
        f"{d['kind']} {d['metadata']['name']}": said for d in documents if (said := complaints(d))
    }
    assert found == {}
    assert {d["kind"] for d in documents} >= {"RayCluster", "StatefulSet", "NetworkPolicy"}
    assert all(d["metadata"].get("namespace") == "orchestrator" for d in documents[1:])
    assert [fault for document in documents for fault in faults(document)] == []


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
    ],
)
def test_the_judge_of_documents_sees_a_wrong_field(
    kind: str, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    document = one(built("base"), kind, name)
    assert complaints(document) == []
    change(document)
    assert len(complaints(document)) == 1


@needs_kustomize
def test_one_tag_in_images_is_the_image_of_every_ray_pod_and_of_mlflow() -> None:
    images = [
        container["image"]
        for document in built("base")
        for _, template in pods(document)
        for container in template["spec"]["containers"]
    ]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert images.count(f"orchestrator:{version[1]}") == 4
    assert all(":" in image for image in images)


@needs_kustomize
def test_small_asks_for_no_gpu_and_fits_on_little() -> None:
    small = built("overlays/small")
    groups = one(small, "RayCluster", "orchestrator")["spec"]["workerGroupSpecs"]
    assert [(g["groupName"], g["minReplicas"], g["maxReplicas"]) for g in groups] == [("cpu", 1, 2)]
    assert "nvidia.com/gpu" not in str(small)
    (template,) = (
        t for where, t in pods(one(small, "RayCluster", "orchestrator")) if "cpu" in where
    )
    limits = template["spec"]["containers"][0]["resources"]["limits"]
    assert int(groups[0]["rayStartParams"]["num-cpus"]) < int(limits["cpu"])


@needs_kustomize
def test_gpu_workers_are_on_gpu_machines_with_a_gpu_each() -> None:
    gpu = group(built("overlays/gpu"), "gpu")
    pod = gpu["template"]["spec"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (1, 8)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert schedulable(pod, {"nvidia.com/gpu.present": "true"}, ["nvidia.com/gpu"])
    assert not schedulable(pod, {}, [])
    assert group(built("overlays/gpu"), "cpu")["minReplicas"] == 0


SPOT = (
    ({"cloud.google.com/gke-spot": "true"}, ["cloud.google.com/gke-spot"]),
    ({"eks.amazonaws.com/capacityType": "SPOT"}, []),
    (
        {"kubernetes.azure.com/scalesetpriority": "spot"},
        ["kubernetes.azure.com/scalesetpriority"],
    ),
    ({"karpenter.sh/capacity-type": "spot"}, ["karpenter.sh/capacity-type"]),
)
SAFE: tuple[dict[str, str], ...] = (
    {},
    {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    {"karpenter.sh/capacity-type": "on-demand"},
)


def schedulable(pod: dict[str, Any], labels: dict[str, str], taints: list[str]) -> bool:
    """Whether the scheduler may put ``pod`` on a node, by the rules for labels and taints."""
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
def test_spot_workers_are_on_spot_machines_and_their_head_is_not() -> None:
    spot = built("overlays/spot")
    cluster = one(spot, "RayCluster", "orchestrator")
    placed = {where.split()[-1]: template["spec"] for where, template in pods(cluster)}
    for labels, taints in SPOT:
        assert schedulable(placed["cpu"], labels, taints)
        assert schedulable(placed["gpu"], labels, [*taints, "nvidia.com/gpu"])
        assert not schedulable(placed["head"], labels, [])
    for labels in SAFE:
        assert schedulable(placed["head"], labels, [])
        assert not schedulable(placed["cpu"], labels, [])
        assert not schedulable(placed["gpu"], labels, [])


# Who may talk to whom: each policy as Kubernetes reads it, on pods as they are labelled.

OURS, OTHERS = "orchestrator", "another"
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
Pod = tuple[dict[str, str], dict[str, str]]
"""Labels of its namespace, and its own; an address of the outside is a string."""


def ours(labels: dict[str, str]) -> Pod:
    return ({"kubernetes.io/metadata.name": OURS}, labels)


def other(**namespace: str) -> Pod:
    labels = {key.replace("__", "/").replace("_", "."): value for key, value in namespace.items()}
    return ({"kubernetes.io/metadata.name": OTHERS, **labels}, {})


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    asked = selector.get("matchExpressions", [])
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        (labels.get(e["key"]) in e["values"]) == (e["operator"] == "In") for e in asked
    )


def peer_is(peer: dict[str, Any], who: Pod | str) -> bool:
    if isinstance(who, str) or "ipBlock" in peer:
        block = peer.get("ipBlock")
        if block is None or not isinstance(who, str):
            return False
        address = ipaddress.ip_address(who)
        nets = [ipaddress.ip_network(c) for c in (block["cidr"], *block.get("except", []))]
        inside = [address.version == net.version and address in net for net in nets]
        return inside[0] and not any(inside[1:])
    namespace, labels = who
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], namespace):
            return False
    elif namespace.get("kubernetes.io/metadata.name") != OURS:
        return False
    return selects(peer.get("podSelector", {}), labels)


def allowed(
    policies: list[dict[str, Any]], source: Pod | str, target: Pod | str, port: int
) -> bool:
    """Whether a TCP connection is let out by its source's policies and in by its target's."""

    def passes(pod: Pod | str, peer: Pod | str, direction: str, side: str) -> bool:
        if isinstance(pod, str) or pod[0]["kubernetes.io/metadata.name"] != OURS:
            return True
        about = [
            p["spec"]
            for p in policies
            if direction.title() in p["spec"]["policyTypes"]
            and selects(p["spec"]["podSelector"], pod[1])
        ]
        rules = [rule for spec in about for rule in spec.get(direction, [])]
        return not about or any(
            any(peer_is(p, peer) for p in rule[side])
            and any(q["port"] == port and q["protocol"] == "TCP" for q in rule["ports"])
            if "ports" in rule
            else any(peer_is(p, peer) for p in rule[side])
            for rule in rules
        )

    return passes(source, target, "egress", "to") and passes(target, source, "ingress", "from")


OPERATOR: Pod = (
    {"kubernetes.io/metadata.name": "kuberay-system"},
    {"app.kubernetes.io/name": "kuberay-operator"},
)
DNS: Pod = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"})
GUEST = other()
INTERNET, METADATA = "93.184.215.14", "169.254.169.254"
MAY: list[tuple[Pod | str, Pod | str, tuple[int, ...]]] = [
    (ours(WORKER), ours(HEAD), (6379, 8265, 10001, 40123)),
    (ours(HEAD), ours(WORKER), (40123,)),
    (ours(WORKER), ours(WORKER), (29500, 40123)),
    (OPERATOR, ours(HEAD), (8265,)),
    (other(orchestrator_access__ray="true"), ours(HEAD), (8265, 10001)),
    (other(orchestrator_access__metrics="true"), ours(WORKER), (8080,)),
    (ours(HEAD), ours(MLFLOW), (5000,)),
    (ours(WORKER), ours(MLFLOW), (5000,)),
    (other(orchestrator_access__mlflow="true"), ours(MLFLOW), (5000,)),
    (ours(MLFLOW), ours(POSTGRES), (5432,)),
    (ours(HEAD), ours(REDIS), (6379,)),
    (ours(CLEANUP), ours(REDIS), (6379,)),
    (ours(HEAD), INTERNET, (443, 6443)),
    (ours(WORKER), INTERNET, (443,)),
    (ours(MLFLOW), INTERNET, (443,)),
    *((ours(pod), DNS, (53,)) for pod in (HEAD, WORKER, MLFLOW, POSTGRES, REDIS)),
]
MAY_NOT: list[tuple[Pod | str, Pod | str, tuple[int, ...]]] = [
    *((GUEST, ours(pod), (5000, 5432, 6379, 8265, 10001, 8080, 40123))
      for pod in (HEAD, WORKER, MLFLOW, POSTGRES, REDIS)),
    (OPERATOR, ours(HEAD), (10001, 6379)),
    (OPERATOR, ours(WORKER), (8265,)),
    (other(orchestrator_access__mlflow="true"), ours(HEAD), (8265,)),
    (other(orchestrator_access__ray="true"), ours(MLFLOW), (5000,)),
    (ours(WORKER), ours(REDIS), (6379,)),
    (ours(MLFLOW), ours(REDIS), (6379,)),
    (ours(WORKER), ours(POSTGRES), (5432,)),
    (ours(HEAD), ours(POSTGRES), (5432,)),
    (ours(MLFLOW), ours(HEAD), (8265,)),
    (ours(POSTGRES), ours(MLFLOW), (5000,)),
    (ours({}), ours(MLFLOW), (5000,)),
    (ours({}), INTERNET, (443,)),
    (GUEST, ours({}), (80,)),
    (ours(POSTGRES), INTERNET, (443,)),
    (ours(REDIS), INTERNET, (443,)),
    (ours(WORKER), INTERNET, (80, 22, 6443)),
    (ours(WORKER), METADATA, (80, 443)),
    (ours(HEAD), METADATA, (80, 443, 6443)),
]  # fmt: skip


def each(
    table: list[tuple[Pod | str, Pod | str, tuple[int, ...]]],
) -> Iterator[tuple[Pod | str, Pod | str, int]]:
    return ((source, target, port) for source, target, ports in table for port in ports)


def test_the_network_policies_let_through_what_is_needed_and_nothing_else() -> None:
    policies = [d for d in written() if d["kind"] == "NetworkPolicy"]
    assert [who for who in each(MAY) if not allowed(policies, *who)] == []
    assert [who for who in each(MAY_NOT) if allowed(policies, *who)] == []


def test_without_any_of_the_policies_something_is_different() -> None:
    policies = [d for d in written() if d["kind"] == "NetworkPolicy"]
    for policy in policies:
        fewer = [p for p in policies if p is not policy]
        wrong = [who for who in each(MAY) if not allowed(fewer, *who)]
        wrong += [who for who in each(MAY_NOT) if allowed(fewer, *who)]
        assert wrong, policy["metadata"]["name"]
