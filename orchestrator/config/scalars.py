"""Read unquoted scalars by the YAML 1.2 core schema, and refuse ambiguous ones."""

import math
import re
from typing import Any

MAX_NUMBER_LENGTH = 300

_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True}
_WORDS |= {"false": False, "False": False, "FALSE": False}


class BadScalar(ValueError):
    """A plain scalar that is ambiguous between YAML versions, or not a finite number."""


def plain_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar by the YAML 1.2 core schema, or raise BadScalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _LEADING_ZERO.fullmatch(text):
        raise BadScalar(_leading_zero(text))
    if _NON_FINITE.fullmatch(text):
        raise BadScalar(f"{text} is not a finite number; write a number, or null for none")
    integer = _INT.fullmatch(text) or _OTHER_INT.fullmatch(text)
    if not integer and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MAX_NUMBER_LENGTH:
        raise BadScalar(f"a number of {len(text)} digits is too long; write a smaller one")
    number = int(text, 0) if integer else float(text)
    if isinstance(number, float) and math.isinf(number):
        raise BadScalar(f"{text} is too large for a number; write a smaller one")
    return number


def _leading_zero(text: str) -> str:
    sign, digits = text.rstrip("0123456789"), text.lstrip("+-").lstrip("0") or "0"
    if set(digits) <= set("01234567"):
        eight, octal = int(digits, 8), f"0o{digits}"
        return (
            f"YAML 1.1 reads {text} as {sign}{eight}, YAML 1.2 as {sign}{digits}; write "
            f"{sign}{digits}, or {f'{eight} ({octal})' if sign else octal} for octal"
        )
    return f"{text} has a leading zero, which YAML versions read differently; write {sign}{digits}"
