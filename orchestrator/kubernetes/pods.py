"""The RayCluster that a job gets for itself.

Its pods equal those of deploy/kubernetes/base/ray-cluster.yaml; tests/kubernetes/test_ray_job.py
compares the two.
"""

import importlib.metadata
from typing import Any

from orchestrator.config.job import Job
from orchestrator.kubernetes.options import ManifestOptions

JOBS = "/jobs"
"""Folder of the job file in the driver's pod."""
USER = 10001
"""User of the image."""
GRACE_S, SAVE_S, NOTICE_S = 120, 100, 90
"""A pod that is terminated has GRACE_S in total. It announces to its workers that it ends in
NOTICE_S, and waits up to SAVE_S for them to write a checkpoint."""
UNANSWERED_MS = 4000
"""Timeout of Ray's health checks: with a check every 3 s and 5 failures, a node counts as lost
after 35 s instead of Ray's default of 65 s."""
LABELS = {"app.kubernetes.io/part-of": "orchestrator"}

# Ray's own processes on each node do not count. The tests set PROC.
WORKER_PRE_STOP = f"""\
p=${{PROC:-/proc}}
id=$(sed -zn 's/^--node_id=//p' $p/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | head -n 1)
timeout 60 ray drain-node ${{id:+--node-id "$id"}} --reason DRAIN_NODE_REASON_PREEMPTION \\
  --reason-message "its pod ends" --deadline-remaining-seconds {NOTICE_S}
while [ $SECONDS -lt {SAVE_S} ] && grep -ahsE '^ray::' $p/[0-9]*/cmdline \\
  | grep -avqE '^ray::(IDLE|DashboardAgent|RuntimeEnvAgent)'; do sleep 1; done
"""
"""Asks the workers of this pod to save a checkpoint and restart elsewhere, and waits for them."""
HEAD_PRE_STOP = f"""\
p=${{PROC:-/proc}}
while [ $SECONDS -lt {SAVE_S} ] && cat $p/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' \\
  | grep -aq 'orchestrato[r] run'; do sleep 1; done
"""
"""Waits for drivers that are stopping."""

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
AUTOSCALER = {
    "version": "v2",
    "idleTimeoutSeconds": 300,
    "resources": {
        "requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    },
    "securityContext": RESTRICTED,
    "volumeMounts": [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "api-token", "mountPath": API_TOKEN, "readOnly": True},
    ],
}
CA_BUNDLE = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
NAMESPACE = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
API_TOKEN_SOURCES = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
    {"configMap": CA_BUNDLE},
    {"downwardAPI": {"items": [NAMESPACE]}},
]
API_TOKEN_VOLUME = {"name": "api-token", "projected": {"sources": API_TOKEN_SOURCES}}
"""Credentials for the Kubernetes API, mounted in the autoscaler's container only."""


def worker_pod_range(job: Job) -> tuple[int, int]:
    """Return the minimum and the maximum number of worker pods, one per worker and trial."""
    cluster = job.cluster
    if job.sweep is None:
        return cluster.min_workers, cluster.max_workers
    # A sweep determines once, at its start, how many trials it has room for.
    room = (job.sweep.max_concurrent or 1) * cluster.max_workers
    return room, room


def ray_cluster_spec(job: Job, options: ManifestOptions, config_map: str) -> dict[str, Any]:
    """Return the spec of the RayCluster, whose head mounts the job file from ``config_map``.

    The head is not fault tolerant: it runs the driver, so that its loss restarts the whole job.
    """
    fewest, most = worker_pod_range(job)
    if options.queue is not None:
        fewest = most  # Kueue admits a cluster as a whole
    elastic = fewest < most
    group = {
        "groupName": "workers",
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": _start(job.cluster.cpus_per_worker),
        "template": _worker(job, options),
    }
    return {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        **({"tlsOptions": {"enabled": True}} if options.tls else {}),
        "enableInTreeAutoscaling": elastic,
        **({"autoscalerOptions": AUTOSCALER} if elastic else {}),
        "headGroupSpec": {
            "rayStartParams": _start(0) | {"dashboard-host": "0.0.0.0"},
            "template": _head(options, config_map, elastic=elastic),
        },
        "workerGroupSpecs": [group],
    }


def _start(cpus: int) -> dict[str, str]:
    """Give Ray's object store little of /dev/shm: nothing large passes through it."""
    return {"num-cpus": str(cpus), "object-store-memory": str(1 << 30)}


def _head(options: ManifestOptions, config_map: str, *, elastic: bool) -> dict[str, Any]:
    resources = {"cpu": str(options.head_cpus), "memory": options.head_memory}
    container = _container("ray-head", options, HEAD_PRE_STOP) | {
        "resources": {"requests": resources, "limits": resources},
        "ports": [
            {"containerPort": port, "name": name}
            for port, name in ((6379, "gcs-server"), (8265, "dashboard"), (10001, "client"))
        ],
        "livenessProbe": _probe("/api/local_raylet_healthz", 52365, failures=120),
        "readinessProbe": _probe("/api/gcs_healthz", 8265, failures=10),
    }
    container["env"] += [
        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(SAVE_S)},
        {"name": "RAY_health_check_timeout_ms", "value": str(UNANSWERED_MS)},
    ]
    container["volumeMounts"] += [{"name": "job", "mountPath": JOBS, "readOnly": True}]
    template = _template(container)
    template["metadata"] |= {
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    }
    template["spec"]["volumes"] += [{"name": "job", "configMap": {"name": config_map}}]
    template["spec"]["volumes"] += [API_TOKEN_VOLUME] if elastic else []
    return template


def _worker(job: Job, options: ManifestOptions) -> dict[str, Any]:
    cluster, cache = job.cluster, job.data.cache
    gpus = {"nvidia.com/gpu": str(cluster.gpus)} if cluster.gpus else {}
    requests = {"cpu": str(cluster.cpus_per_worker), "memory": options.worker_memory, **gpus}
    # One more for Ray's own processes, if the node has it.
    limits = requests | {"cpu": str(cluster.cpus_per_worker + 1)}
    container = _container("ray-worker", options, WORKER_PRE_STOP) | {
        "resources": {"requests": requests, "limits": limits},
        "livenessProbe": _probe("/api/local_raylet_healthz", 52365, failures=120),
        "readinessProbe": _probe("/api/local_raylet_healthz", 52365, failures=10),
    }
    template = _template(container)
    if cache is not None:
        container["volumeMounts"] += [{"name": "cache", "mountPath": cache.folder}]
        room = {"sizeLimit": str(cache.limit + cache.limit // 10)}
        template["spec"]["volumes"] += [{"name": "cache", "emptyDir": room}]
    if gpus:
        tolerated = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        template["spec"]["tolerations"] = [tolerated]
    return template


def _container(name: str, options: ManifestOptions, pre_stop: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": options.image_name,
        "securityContext": RESTRICTED,
        "envFrom": [
            {"configMapRef": {"name": options.config_map}},
            {"secretRef": {"name": options.secret}},
        ],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", pre_stop]}}},
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _template(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"labels": LABELS},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": POD_SECURITY,
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
            ],
        },
    }


def _probe(path: str, port: int, failures: int) -> dict[str, Any]:
    """Return a probe with KubeRay's timeouts as an HTTP request: KubeRay's own may need wget."""
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
