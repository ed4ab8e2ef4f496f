"""Apply ``--set a.b=value`` overrides, which follow the same rules as values in the file."""

from collections.abc import Sequence
from typing import Any

from orchestrator.config.env_refs import is_secret
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
    """Apply the overrides to ``source`` in order, and add their mistakes to it.

    Raises:
        UsageError: an override has no key or no `=`.
    """
    for text in overrides:
        path, value_text = split_override(text)
        label = _label(path, value_text)
        value = parse_yaml(value_text, label)
        here = Position(label)
        for mistake in value.mistakes:
            source.mistakes.append(Mistake(here, path + mistake.path, mistake.message))
        if not _create_sections(source, path, here):
            continue
        _put(source, path, value, here)


def split_override(text: str) -> tuple[KeyPath, str]:
    """Return the path and the YAML text of one override.

    Raises:
        UsageError: it has no key or no `=`.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals:
        raise UsageError(f"--set {text[:60]}: has no `=`; write {_EXAMPLE}")
    if not all(path):
        raise UsageError(f"--set {key}=...: has an empty key; write {_EXAMPLE}")
    return path, value


def _label(path: KeyPath, value: str) -> str:
    shown = "***" if is_secret(path) else mask(" ".join(value.split()))
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return f"--set {join_path(path)}={shown}"


def _create_sections(source: YamlSource, path: KeyPath, here: Position) -> bool:
    """Create the sections above ``path``; return False if one of them is not a mapping."""
    section: Any = source.data
    for depth, key in enumerate(path[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
            source.positions[path[:depth]] = here
        section = section[key]
        if not isinstance(section, dict):
            above = join_path(path[:depth])
            message = f"cannot be set because {above} is not a mapping; set {above} itself"
            source.mistakes.append(Mistake(here, path, message))
            return False
    return True


def _put(source: YamlSource, path: KeyPath, value: YamlSource, here: Position) -> None:
    section = source.data
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value.data
    for known in [p for p in source.positions if p[: len(path)] == path]:
        del source.positions[known]
    source.unquoted = {p for p in source.unquoted if p[: len(path)] != path}
    for inner in {*value.positions, ()}:
        source.positions[path + inner] = here
    source.unquoted |= {path + inner for inner in value.unquoted}
