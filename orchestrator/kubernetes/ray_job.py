"""Build the manifests of a job: a RayJob or a RayCronJob, and a ConfigMap with the job file."""

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from orchestrator.config.load import LoadedJob
from orchestrator.errors import UsageError
from orchestrator.kubernetes.options import ManifestOptions
from orchestrator.kubernetes.pods import JOBS, LABELS, ray_cluster_spec
from orchestrator.kubernetes.portability import (
    find_local_paths,
    find_plain_secrets,
    find_sizes_from_env,
)
from orchestrator.redaction import mask

NAME_LENGTH = {"RayJob": 47, "RayCronJob": 36}
"""Maximum length of a name; KubeRay derives the names of clusters and cron jobs' runs from it."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SCHEDULE = re.compile(
    r"@(yearly|annually|monthly|weekly|daily|midnight|hourly|every \S+)|[^@\s]\S*( \S+){4}"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)")


def build_manifests(loaded: LoadedJob, options: ManifestOptions) -> list[dict[str, Any]]:
    """Return a ConfigMap with the job file, and the RayJob or RayCronJob.

    A running cluster cannot mount a new file: there the entrypoint contains the file instead.
    A job with a plain secret or a local path, and invalid options raise UsageError.
    """
    if (problem := next(_find_problems(loaded, options), None)) is not None:
        raise UsageError(problem)
    kind = "RayJob" if options.schedule is None else "RayCronJob"
    name = _name(loaded, kind)
    namespace = {"namespace": options.namespace} if options.namespace else {}
    queued = {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}
    file_name = re.sub(r"[^-._A-Za-z0-9]", "-", loaded.path.name)
    spec: dict[str, Any] = {
        "entrypoint": _entrypoint(loaded, options, file_name, name),
        # The operator posts the entrypoint unchanged and has the token. The other modes pass it
        # through two more shells, in a pod that runs as root without limits.
        "submissionMode": "HTTPMode",
        "metadata": {"job": loaded.job.name},
    }
    if options.deadline is not None:
        spec["activeDeadlineSeconds"] = options.deadline
    if options.start_deadline is not None:
        spec["preRunningDeadlineSeconds"] = options.start_deadline
    if options.cluster is not None:
        spec["clusterSelector"] = {"ray.io/cluster": options.cluster}
    else:
        spec |= {
            "backoffLimit": 2 if options.retries is None else options.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": options.keep,
            "rayClusterSpec": ray_cluster_spec(loaded.job, options, name),
        }
    if options.queue is not None:
        spec["suspend"] = True  # until Kueue admits it
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
    """Return a name that is unique for the job, its file and its overrides."""
    digest = hashlib.sha256("\0".join((loaded.text, *loaded.overrides)).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", loaded.job.name.lower()).strip("-")
    words = words if words[:1].isalpha() else f"job-{words}"
    return f"{words[: NAME_LENGTH[kind] - 9].rstrip('-')}-{digest}"


def _entrypoint(loaded: LoadedJob, options: ManifestOptions, file_name: str, name: str) -> str:
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


def _find_problems(loaded: LoadedJob, options: ManifestOptions) -> Iterator[str]:
    """Yield what prevents the job from being printed."""
    yield from _find_invalid_options(options)
    yield from find_plain_secrets(loaded)
    if options.cluster is not None:
        if options.queue is not None:
            yield "--queue needs a cluster of the job's own, and --cluster runs already; give one"
        if options.retries:
            yield "--retries starts a new cluster each time, and --cluster runs already; give one"
    else:
        yield from find_sizes_from_env(loaded)
        yield from find_local_paths(loaded)
    if options.schedule is None:
        if options.time_zone is not None:
            yield "--time-zone needs a --schedule"
    elif options.queue is not None:
        yield "--queue is a label of a RayJob, and --schedule makes a RayCronJob; give one"
    elif "TZ" in options.schedule:
        yield f"--schedule {options.schedule!r}: set the time zone with --time-zone"
    elif not _SCHEDULE.fullmatch(options.schedule):
        form = "has neither five fields nor a known name; write '0 3 * * 1' or '@daily'"
        yield f"--schedule {options.schedule!r} {form}"


def _find_invalid_options(options: ManifestOptions) -> Iterator[str]:
    """Yield values that Kubernetes would refuse."""
    for option in ("namespace", "cluster", "queue", "config_map", "secret"):
        name = getattr(options, option)
        if name is not None and not _NAME.fullmatch(name):
            flag = option.replace("_", "-")
            yield f"--{flag} {name!r} is not a valid Kubernetes name; use a-z, 0-9 and dashes"
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, str) and mask(value) != value:
            flag = field.name.replace("_", "-")
            yield f"--{flag} {mask(value)}: contains a password in plain text"
    for option in ("worker_memory", "head_memory"):
        if not _MEMORY.fullmatch(memory := getattr(options, option)):
            yield f"--{option.replace('_', '-')} {memory!r} is not a valid size; write 8Gi or 512Mi"
    if not re.fullmatch(r"\S+", options.image_name):
        yield f"--image {options.image!r} is not a valid image; write registry/orchestrator:0.2.0"
    _, at, digest = options.image_name.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        problem = "has no valid digest; write NAME@sha256: and its 64 digits from a-f and 0-9"
        yield f"--image {options.image!r} {problem}"
