"""Flatten a rendered job into its values by dotted name, for MLflow params and comparisons."""

from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML


def flatten(rendered: str) -> dict[str, Any]:
    """Return every value of the YAML text ``rendered`` by its dotted name."""
    return dict(_leaves(YAML(typ="safe", pure=True).load(rendered), ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
