"""A job file with other values, its comments and its order kept."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from orchestrator.config.overrides import split
from orchestrator.config.yaml_source import parse


def rewritten(text: str, overrides: tuple[str, ...], drop: tuple[str, ...], about: str) -> str:
    """``text`` of a job file with ``overrides`` in it, without the sections ``drop``.

    Args:
        overrides: as given with --set.
        about: a line that goes above all comments but the shebang.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.preserve_quotes = True
    data = yaml.load(text)
    for section in drop:
        if section in data:
            text = _without(text, data, section)
            data = yaml.load(text) or CommentedMap()
            data.pop(section, None)
    for override in overrides:
        path, value = split(override)
        _put(data, path, parse(value, override).data)
    out = io.StringIO()
    yaml.dump(data, out)
    first, newline, rest = out.getvalue().partition("\n")
    if first.startswith("#!"):
        return f"{first}{newline}# {about}\n{rest}"
    return f"# {about}\n{out.getvalue()}"


def _without(text: str, data: CommentedMap, section: str) -> str:
    """``text`` without the lines of a section, but with the comments that follow it.

    ruamel has them in the section, and would drop them with it.
    """
    lines = text.splitlines(keepends=True)
    if data.fa.flow_style() or "&" in text:  # an anchor may be in it, and be meant elsewhere
        return text
    start = data.lc.key(section)[0]
    end = min((data.lc.key(k)[0] for k in data if data.lc.key(k)[0] > start), default=len(lines))
    last = end
    while last > start + 1 and (lines[last - 1][0] == "#" or not lines[last - 1].strip()):
        last -= 1
    return "".join(lines[:start] + lines[last:])


def _put(data: Mapping[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    section: Any = data
    for key in path[:-1]:
        if section.get(key) is None:
            section[key] = CommentedMap()
        section = section[key]
    section[path[-1]] = value
