"""A job file as a KubeRay RayJob: the only room that knows what Kubernetes wants to hear.

job.py makes the documents, pods.py the cluster in them. Both are pure: from a checked job and
options to what `kubectl apply` takes.
"""

from orchestrator.kubernetes.pods import Options
from orchestrator.kubernetes.ray_job import manifests

__all__ = ["Options", "manifests"]
