"""Manifests in deploy/kubernetes as they are written: security, references and settings.

Kubernetes itself is not available: no test runs them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.kubernetes.pods import GRACE_S, NOTICE_S, SAVE_S, UNANSWERED_MS
from support.kustomize import FOLDER, README, find, written
from support.manifests import ROOT, pods, read_documents, references, security_problems


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/kustomization.yaml")), ids=str)
def test_a_kustomization_lists_exactly_the_files_of_its_folder(path: Path) -> None:
    (kustomization,) = read_documents(path.read_text())
    listed = {(path.parent / name).resolve() for name in kustomization["resources"]}
    assert all(found.exists() for found in listed)
    assert all(read_documents(found.read_text()) for found in listed if found.is_file())
    existing = {found.resolve() for found in path.parent.glob("*.yaml")} - {path.resolve()}
    assert existing == {found for found in listed if found.is_file()}


def test_no_pod_is_insecure_and_no_manifest_contains_a_secret() -> None:
    problems = [problem for document in written() for problem in security_problems(document)]
    assert problems == []
    assert len([pod for document in written() for pod in pods(document)]) == 9


def problems_after(change: Callable[[dict[str, Any]], object]) -> list[str]:
    """Security problems of the MLflow server after a ``change`` of its pod."""
    document = find(written(), "Deployment", "mlflow")
    change(document["spec"]["template"]["spec"])
    return list(security_problems(document))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda pod: pod["securityContext"].update(runAsUser=0), "may run as root"),
        (lambda pod: pod.pop("automountServiceAccountToken"), "has a token"),
        (lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"), "no limits for"),
        (lambda pod: pod["containers"][0]["securityContext"].clear(), "may gain privileges"),
        (
            lambda pod: pod["containers"][0]["env"].append({"name": "PGPASSWORD", "value": "x"}),
            "PGPASSWORD holds a secret",
        ),
        (lambda pod: pod["volumes"].pop(), "is not a volume"),
    ],
)
def test_insecure_settings_of_a_pod_are_found(
    change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    assert problems_after(lambda pod: None) == []
    assert any(expected in problem for problem in problems_after(change))


def test_every_secret_has_a_command_in_the_readme_and_every_config_map_exists() -> None:
    created: dict[str, set[str]] = {}
    joined = README.read_text().replace("\\\n", " ")
    for name, rest in re.findall(r"kubectl create secret generic (\S+)(.*)", joined):
        created[name] = set(re.findall(r"--from-file=([^=\s]+)=", rest))
        for file in re.findall(r"--from-env-file=(\S+)", rest):
            created[name].add(f"all of {file}")
        assert "--from-literal" not in rest
    maps = {d["metadata"]["name"] for d in written() if d["kind"] == "ConfigMap"}
    for document in written():
        for kind, name, key in references(document):
            if kind == "ConfigMap":
                assert name in maps | {"kube-root-ca.crt"}
            else:
                assert name in created, f"{name} of {document['metadata']['name']}"
                assert key is None or key in created[name]
    assert set(created) == {
        "orchestrator-credentials", "orchestrator-serve", "mlflow", "postgres", "redis",
    }  # fmt: skip


def test_the_cluster_has_the_ray_version_of_the_image() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.search(r"^ray==(\S+)", lock, re.M)
    assert locked is not None
    assert find(written(), "RayCluster", "orchestrator")["spec"]["rayVersion"] == locked[1]
    service = find(written(), "RayService", "model")["spec"]["rayClusterConfig"]
    assert service["rayVersion"] == locked[1]


def test_the_grace_period_of_a_pod_is_longer_than_the_time_to_save_and_the_notice() -> None:
    for document in written():
        if document["kind"] != "RayCluster":
            continue
        for _, template in pods(document):
            assert template["spec"]["terminationGracePeriodSeconds"] == GRACE_S
    assert NOTICE_S < SAVE_S < GRACE_S


def test_a_silent_node_is_lost_within_a_minute() -> None:
    cluster = find(written(), "RayCluster", "orchestrator")
    ((_, head),) = [pod for pod in pods(cluster) if pod[0].endswith(" head")]
    expected = {"name": "RAY_health_check_timeout_ms", "value": str(UNANSWERED_MS)}
    assert expected in head["spec"]["containers"][0]["env"]
    assert 5 * (UNANSWERED_MS / 1000 + 3) < 60, "five health checks, three seconds apart"
