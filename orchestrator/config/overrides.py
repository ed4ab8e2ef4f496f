"""``--set a.b=value``: values from the command line, by the same rules as those of the file."""

from collections.abc import Sequence
from typing import Any

from orchestrator.config.env_refs import is_secret
from orchestrator.config.yaml_source import KeyPath, Mistake, Position, Source, parse
from orchestrator.errors import UsageError
from orchestrator.redaction import mask

_EXAMPLE = "--set train.batch_size=32"


def apply(overrides: Sequence[str], source: Source) -> None:
    """Put each override into ``source``, the last one last; their mistakes go there too.

    Raises:
        UsageError: an override has no key or no `=`.
    """
    for text in overrides:
        path, value_text = split(text)
        label = _label(path, value_text)
        value = parse(value_text, label)
        here = Position(label)
        for mistake in value.mistakes:
            source.mistakes.append(Mistake(here, path + mistake.path, mistake.message))
        if not _make_room(source, path, here):
            continue
        _put(source, path, value, here)


def split(text: str) -> tuple[KeyPath, str]:
    """The path and the YAML of one override.

    Raises:
        UsageError: there is no key or no `=`.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals:
        raise UsageError(f"--set {text[:60]}: has no `=`; write {_EXAMPLE}")
    if not all(path):
        raise UsageError(
            f"--set {key}=...: has no key before `=` or around a dot; write {_EXAMPLE}"
        )
    return path, value


def _label(path: KeyPath, value: str) -> str:
    shown = "***" if is_secret(path) else mask(" ".join(value.split()))
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return f"--set {'.'.join(map(str, path))}={shown}"


def _make_room(source: Source, path: KeyPath, here: Position) -> bool:
    """Create the sections above ``path``; False where something else stands in the way."""
    section: Any = source.data
    for depth, key in enumerate(path[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
            source.positions[path[:depth]] = here
        section = section[key]
        if not isinstance(section, dict):
            above = ".".join(map(str, path[:depth]))
            message = f"cannot be set, for {above} is no section; set {above} itself"
            source.mistakes.append(Mistake(here, path, message))
            return False
    return True


def _put(source: Source, path: KeyPath, value: Source, here: Position) -> None:
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
