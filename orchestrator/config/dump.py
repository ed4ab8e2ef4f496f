"""Write YAML that readers of YAML 1.1 and 1.2 understand alike."""

import io
import re
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9./_-]*")
_WORDS = re.compile(r"(?i)y|n|yes|no|on|off|true|false|null")
"""Strings that YAML 1.1 reads as booleans or null."""


def dump_yaml(documents: Sequence[Any]) -> str:
    """Return ``documents`` of mappings, lists and plain values, separated by ``---``."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda data: True  # write shared parts out
    out = io.StringIO()
    yaml.dump_all([_styled(document) for document in documents], out)
    return out.getvalue()


def _styled(value: Any) -> Any:
    if isinstance(value, dict):
        return {_styled(key): _styled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_styled(inner) for inner in value]
    if not isinstance(value, str):
        return value
    lines = value.split("\n")
    if len(lines) > 1 and value[0] not in " \n" and all(map(str.isprintable, lines)):
        return LiteralScalarString(value)
    if _PLAIN.fullmatch(value) and not _WORDS.fullmatch(value):
        return value
    return DoubleQuotedScalarString(value)
