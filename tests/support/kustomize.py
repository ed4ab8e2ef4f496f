"""The documents in deploy/kubernetes, as they are written and as kustomize builds them."""

import copy
import functools
import shutil
import subprocess
from typing import Any

import pytest

from support.manifests import ROOT, read_documents

FOLDER = ROOT / "deploy" / "kubernetes"
README = FOLDER / "README.md"
OVERLAYS = ("base", "overlays/small", "overlays/gpu", "overlays/spot")
SERVED = ("serve/deployment", "serve/ray-service")
"""What serves a model, beside an overlay: one of them."""
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
def _build(overlay: str) -> tuple[dict[str, Any], ...]:
    assert KUSTOMIZE is not None
    result = subprocess.run(
        [*KUSTOMIZE, str(FOLDER / overlay)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return tuple(read_documents(result.stdout))


def build(overlay: str) -> list[dict[str, Any]]:
    """Build an overlay. Returns copies of its documents, which may be changed."""
    return copy.deepcopy(list(_build(overlay)))


def written() -> list[dict[str, Any]]:
    """Read the documents in the files of the base, and of what serves a model."""
    files = [*sorted((FOLDER / "base").glob("*.yaml")), *sorted((FOLDER / "serve").rglob("*.yaml"))]
    texts = [file.read_text() for file in files if file.name != "kustomization.yaml"]
    return [document for text in texts for document in read_documents(text)]


def find(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def find_group(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    groups = find(documents, "RayCluster", "orchestrator")["spec"]["workerGroupSpecs"]
    found: dict[str, Any]
    (found,) = (g for g in groups if g["groupName"] == name)
    return found
