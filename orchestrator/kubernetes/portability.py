"""Find plain secrets and local paths, which keep a job from running on other machines."""

from collections.abc import Iterator

from orchestrator.config.env_refs import is_secret
from orchestrator.config.flatten import iter_leaves
from orchestrator.config.load import LoadedJob
from orchestrator.config.overrides import split_override
from orchestrator.config.rules import training_places
from orchestrator.config.yaml_source import KeyPath, join_path
from orchestrator.redaction import mask

_NO_SECRETS = (
    "manifests are stored in the cluster and shown by kubectl; write ${env:NAME} and put the value "
    "into the Secret"
)


def find_plain_secrets(loaded: LoadedJob) -> Iterator[str]:
    """Find passwords in the text of the file or in an override."""
    for number, line in enumerate(loaded.text.splitlines(), start=1):
        if mask(line) != line:
            yield f"{loaded.path}:{number}: contains a password in plain text; {_NO_SECRETS}"
    for override in loaded.overrides:
        path, value = split_override(override)
        if mask(value) != value or (is_secret(path) and "${env:" not in value):
            yield f"--set {join_path(path)}=***: is a secret in plain text; {_NO_SECRETS}"
    for leaf, value in iter_leaves(loaded.job.model_dump(mode="json", by_alias=True)):
        if is_secret(leaf) and value is not None and leaf not in loaded.references.by_path:
            yield f"{join_path(leaf)}: is a secret in plain text; {_NO_SECRETS}"


def find_sizes_from_env(loaded: LoadedJob) -> Iterator[str]:
    """Find numbers of workers, cores and bytes that depend on the local environment."""
    for path, reference in loaded.references.by_path.items():
        if path[0] == "cluster" or path[:2] in (("sweep", "max_concurrent"), ("data", "cache")):
            yield (
                f"{join_path(path)}: {mask(reference.text)} would size the cluster by this "
                f"machine's environment; write the value, or --set {join_path(path)}=..."
            )


def find_local_paths(loaded: LoadedJob) -> Iterator[str]:
    """Find paths on this machine; references are skipped, as they are expanded in the cluster."""
    job = loaded.job
    paths: dict[KeyPath, str | None] = {
        ("storage",): job.storage,
        **training_places(job),
        ("data", "validation"): job.data.validation,
        ("tracking", "uri"): job.tracking.uri,
    }
    for path, uri in paths.items():
        if uri is None or path in loaded.references.by_path:
            continue
        if "://" not in uri or uri.startswith(("sqlite", "file:")):
            instead = (
                "http://HOST:5000"
                if path[0] == "tracking"
                else "a bucket such as s3://bucket/prefix"
            )
            yield (
                f"{join_path(path)}: {mask(uri)} is on one machine, and the job runs on several; "
                f"use {instead}, or a reference such as ${{env:NAME}}"
            )
