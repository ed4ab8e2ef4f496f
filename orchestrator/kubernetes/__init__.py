"""Write a job as a KubeRay RayJob; no other package knows Kubernetes.

ray_job.py builds the manifests and pods.py the cluster in them: pure functions of a checked job and
ManifestOptions. Its `__init__` imports nothing.
"""
