"""Change values in the text of a job file, and keep its comments and its order."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from orchestrator.config.overrides import split_override
from orchestrator.config.yaml_source import parse_yaml


def edit_values(text: str, overrides: tuple[str, ...], drop: tuple[str, ...], about: str) -> str:
    """Return the job file ``text`` with ``overrides`` applied and the sections ``drop`` removed.

    ``about`` becomes a comment at the top of the file, below a shebang.
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
        path, value = split_override(override)
        _put(data, path, parse_yaml(value, override).data)
    out = io.StringIO()
    yaml.dump(data, out)
    first, newline, rest = out.getvalue().partition("\n")
    shebang = first + newline if first.startswith("#!") else ""
    return f"{shebang}# {about}\n{rest if shebang else out.getvalue()}"


def _without(text: str, data: CommentedMap, section: str) -> str:
    """Return ``text`` without the lines of a section, but with the comments that follow it.

    ruamel attaches these to the section, and would drop them with it.
    """
    lines = text.splitlines(keepends=True)
    if data.fa.flow_style() or "&" in text:  # an anchor in it may be used elsewhere
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
