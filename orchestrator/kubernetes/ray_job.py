"""A job and its file as the documents of a RayJob or a RayCronJob."""

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

from orchestrator.config.load import LoadedJob
from orchestrator.errors import UsageError
from orchestrator.kubernetes.pods import JOBS, LABELS, Options, cluster_of
from orchestrator.kubernetes.portability import (
    local_places,
    plain_secrets,
    sized_by_the_environment,
)

NAME_LENGTH = {"RayJob": 47, "RayCronJob": 36}
"""KubeRay appends to a RayJob's name for its cluster, and to a RayCronJob's for its jobs."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CLUSTER_LABEL = "ray.io/cluster"
RETRIES = 2
_NAMES = ("namespace", "cluster", "queue", "places", "secret")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)")


def manifests(loaded: LoadedJob, options: Options) -> list[dict[str, Any]]:
    """The documents for one job: its file as a ConfigMap, and the RayJob or RayCronJob.

    On a running cluster, which mounts no new file, the entrypoint holds the file instead.

    Raises:
        UsageError: the job holds a secret in plain text, depends on this machine, or the options
            exclude each other.
    """
    problem = next(_problems(loaded, options), None)
    if problem is not None:
        raise UsageError(problem)
    kind = "RayJob" if options.schedule is None else "RayCronJob"
    name = _name(loaded, kind)
    namespace = {"namespace": options.namespace} if options.namespace else {}
    queued = {QUEUE_LABEL: options.queue} if options.queue else {}
    file_name = re.sub(r"[^-._A-Za-z0-9]", "-", loaded.path.name)
    spec: dict[str, Any] = {
        "entrypoint": _entrypoint(loaded, options, file_name, name),
        # The operator posts the entrypoint as it stands and has the token. The other modes put it
        # through two more shells, in a pod with root and no limits.
        "submissionMode": "HTTPMode",
        "metadata": {"job": loaded.job.name},
    }
    if options.deadline_s is not None:
        spec["activeDeadlineSeconds"] = options.deadline_s
    if options.start_deadline_s is not None:
        spec["preRunningDeadlineSeconds"] = options.start_deadline_s
    if options.cluster is not None:
        spec["clusterSelector"] = {CLUSTER_LABEL: options.cluster}
    else:
        spec |= {
            "backoffLimit": RETRIES if options.retries is None else options.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": options.keep_s,
            "rayClusterSpec": cluster_of(loaded.job, options, name),
        }
    if options.queue is not None:
        spec["suspend"] = True  # until Kueue has room
    if kind == "RayCronJob":
        zone = {"timeZone": options.time_zone} if options.time_zone else {}
        spec = {"schedule": options.schedule, **zone, "jobTemplate": spec}
    metadata = {"name": name, **namespace, "labels": {**LABELS, **queued}}
    made = {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
    if options.cluster is not None:
        return [made]
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **namespace, "labels": LABELS},
        "immutable": True,
        "data": {file_name: loaded.text},
    }
    return [config_map, made]


def _name(loaded: LoadedJob, kind: str) -> str:
    """Of the job, and of what is run: another file or another --set is another object."""
    digest = hashlib.sha256("\0".join((loaded.text, *loaded.overrides)).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", loaded.job.name.lower()).strip("-")
    words = words if words[:1].isalpha() else f"job-{words}"
    return f"{words[: NAME_LENGTH[kind] - 9].rstrip('-')}-{digest}"


def _entrypoint(loaded: LoadedJob, options: Options, file_name: str, name: str) -> str:
    path = f"{JOBS}/{file_name}" if options.cluster is None else f"/tmp/{name}.yaml"
    command = ["orchestrator", "run", path]
    for override in loaded.overrides:
        command += ["--set", override]
    if options.resume is not None:
        command.append("--resume" if options.resume else "--no-resume")
    run = shlex.join(command)
    if options.cluster is None:
        return run
    text = base64.b64encode(loaded.text.encode()).decode()
    return f"echo {text} | base64 -d > {path} && {run}"


def _problems(loaded: LoadedJob, options: Options) -> Iterator[str]:
    """What keeps the job from being printed, the first first."""
    yield from _misspelt(options)
    yield from plain_secrets(
        loaded, "a manifest is kept in the cluster and shown by kubectl: write ${env:NAME} and put "
        "the value into the Secret"
    )  # fmt: skip
    if options.cluster is not None:
        if options.queue is not None:
            yield "--queue admits a cluster of its own, and --cluster runs already; give one"
        if options.retries:
            yield "--retries starts a new cluster each time, and --cluster uses one; give one"
    else:
        yield from sized_by_the_environment(loaded)
        yield from local_places(loaded)
    if options.schedule is None:
        if options.time_zone is not None:
            yield "--time-zone is for a --schedule, and there is none"
    elif options.queue is not None:
        yield "--queue is a label of a RayJob, and --schedule makes a RayCronJob; give one"
    elif "TZ" in options.schedule:
        yield f"--schedule {options.schedule!r}: the zone goes into --time-zone"
    elif not re.fullmatch(r"@\w+( \w+)?|\S+( \S+){4}", options.schedule):
        yield f"--schedule {options.schedule!r} has not five fields; write '0 3 * * 1' or '@daily'"


def _misspelt(options: Options) -> Iterator[str]:
    """Values that kubectl or a later step would refuse."""
    for option in _NAMES:
        name = getattr(options, option)
        if name is not None and not _NAME.fullmatch(name):
            yield f"--{option} {name!r} is no name in Kubernetes; use a-z, 0-9 and dashes"
    for option in ("worker_memory", "head_memory"):
        if not _MEMORY.fullmatch(memory := getattr(options, option)):
            yield f"--{option.replace('_', '-')} {memory!r} is no size; write 8Gi or 512Mi"
    if not re.fullmatch(r"\S+", options.image):
        yield f"--image {options.image!r} is no image; write registry/orchestrator:0.1.0"
