"""Flatten a rendered job into its values by dotted name, for MLflow params and comparisons."""

from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

from orchestrator.config.yaml_source import KeyPath, join_path


def flatten(rendered: str) -> dict[str, Any]:
    """Return every value of the YAML text ``rendered`` by its dotted name."""
    loaded = YAML(typ="safe", pure=True).load(rendered)
    return {join_path(path): value for path, value in iter_leaves(loaded)}


def iter_leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values in nested mappings with their paths; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from iter_leaves(inner, (*path, key))
    else:
        yield path, value
