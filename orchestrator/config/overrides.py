"""Apply ``--set a.b=value`` overrides, which follow the same rules as values in the file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.env_refs import is_secret
from orchestrator.config.sweep import Value
from orchestrator.config.yaml_source import (
    KeyPath,
    Mistake,
    Position,
    YamlSource,
    join_path,
    parse_yaml,
)
from orchestrator.errors import UsageError
from orchestrator.redaction import mask

_EXAMPLE = "--set train.batch_size=32"


def apply_overrides(overrides: Sequence[str], source: YamlSource) -> None:
    """Apply the overrides to ``source`` in order, and add their mistakes to it."""
    for text in overrides:
        path, value_text = split_override(text)
        shown = "***" if is_secret(path) else mask(" ".join(value_text.split()))
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        here = Position(f"--set {join_path(path)}={shown}")
        value = parse_yaml(value_text, here.file)
        source.mistakes += [Mistake(here, path + m.path, m.message) for m in value.mistakes]
        section = _open_section(source, path, here)
        if section is None:
            continue
        section[path[-1]] = value.data
        kept = {p: at for p, at in source.positions.items() if p[: len(path)] != path}
        source.positions = kept | {path + inner: here for inner in value.positions}
        source.unquoted = {p for p in source.unquoted if p[: len(path)] != path}
        source.unquoted |= {path + inner for inner in value.unquoted}


def split_override(text: str) -> tuple[KeyPath, str]:
    """Return the path and the YAML text of one override; raise UsageError if it lacks one."""
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals:
        raise UsageError(f"--set {mask(text)[:60]}: has no `=`; write {_EXAMPLE}")
    if not all(path):
        raise UsageError(f"--set {mask(key)}=...: has an empty key; write {_EXAMPLE}")
    return path, value


def to_override(name: str, value: Value) -> str:
    """Return ``model.gamma=0.5``; an integral float loses its decimals, for integer fields."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return f"{name}={json.dumps(value)}"


def to_overrides(values: Mapping[str, Value]) -> tuple[str, ...]:
    """Return one override for each of a trial's ``values``."""
    return tuple(to_override(name, value) for name, value in values.items())


def _open_section(source: YamlSource, path: KeyPath, here: Position) -> dict[Any, Any] | None:
    """Return the section of ``path``, created if missing; None if one above is not a mapping."""
    section: dict[Any, Any] = source.data
    for depth, key in enumerate(path[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
            source.positions[path[:depth]] = here
        section = section[key]
        if not isinstance(section, dict):
            above = join_path(path[:depth])
            message = f"cannot be set because {above} is not a mapping; set {above} itself"
            source.mistakes.append(Mistake(here, path, message))
            return None
    return section
