"""What keeps a job from being handed to other machines: its secrets, and what only this one has.

Each function gives a line for each problem.
"""

from collections.abc import Iterator
from typing import Any

from orchestrator.config.env_refs import is_secret
from orchestrator.config.load import LoadedJob
from orchestrator.config.overrides import split_override
from orchestrator.config.yaml_source import KeyPath, join_path
from orchestrator.redaction import mask


def plain_secrets(loaded: LoadedJob, why: str) -> Iterator[str]:
    """Passwords that the file or a --set holds themselves; ``why`` ends each line."""
    for number, line in enumerate(loaded.text.splitlines(), start=1):
        if mask(line) != line:
            yield f"{loaded.path}:{number}: holds a password in plain text, and {why}"
    for override in loaded.overrides:
        path, value = split_override(override)
        if mask(value) != value or (is_secret(path) and "${env:" not in value):
            yield f"--set {join_path(path)}=***: is a secret in plain text, and {why}"
    for leaf, value in _leaves(loaded.job.model_dump(mode="json", by_alias=True), ()):
        if is_secret(leaf) and value is not None and leaf not in loaded.references.by_path:
            yield f"{join_path(leaf)}: is a secret in plain text, and {why}"


def sized_by_the_environment(loaded: LoadedJob) -> Iterator[str]:
    """Numbers of workers, cores and bytes that another environment may hold differently."""
    for path, reference in loaded.references.by_path.items():
        if path[0] == "cluster" or path[:2] in (("sweep", "max_concurrent"), ("data", "cache")):
            yield (
                f"{join_path(path)}: {mask(reference.text)} would size the machines by the "
                f"environment of this one; write the value, or --set {join_path(path)}=..."
            )


def local_places(loaded: LoadedJob) -> Iterator[str]:
    """Places that one machine alone sees; what a reference holds elsewhere is known there."""
    job = loaded.job
    places: dict[KeyPath, str | None] = {
        ("storage",): job.storage,
        ("data", "train"): job.data.train,
        ("data", "validation"): job.data.validation,
        ("tracking", "uri"): job.tracking.uri,
    }
    for path, place in places.items():
        if place is None or path in loaded.references.by_path:
            continue
        if "://" not in place or place.startswith(("sqlite:", "file:")):
            instead = "http://HOST:5000" if path[0] == "tracking" else "s3://bucket/prefix"
            yield (
                f"{join_path(path)}: {mask(place)} is on one machine, and the job runs on several; "
                f"use {instead}, or a reference such as ${{env:NAME}}"
            )


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value
