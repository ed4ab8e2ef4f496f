"""Flatten a rendered job into its values by dotted name, for MLflow params and comparisons."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ruamel.yaml import YAML

from orchestrator.config.yaml_source import KeyPath, join_path

MAX_VALUES = 100_000
"""Values of a job, far above any: aliases of a few lines of YAML can stand for billions."""


def flatten(rendered: str) -> dict[str, Any]:
    """Return every value of the YAML text ``rendered`` by its dotted name.

    Raises ValueError if it is not a mapping of YAML.
    """
    try:
        loaded = YAML(typ="safe", pure=True).load(rendered)
        if not isinstance(loaded, dict):
            raise ValueError("it is not a mapping")
        leaves = list(islice(iter_leaves(loaded), MAX_VALUES + 1))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # the parser raises errors of many types on text that is not YAML
        raise ValueError(f"it is not YAML: {error}") from error
    if len(leaves) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    return {join_path(tuple(str(part) for part in path)): value for path, value in leaves}


def iter_leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values in nested mappings with their paths; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from iter_leaves(inner, (*path, key))
    else:
        yield path, value
