"""Read unquoted scalars by the YAML 1.2 core schema, and refuse ambiguous ones."""

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
    """Return the value of an unquoted scalar by the YAML 1.2 core schema.

    Raises:
        BadScalar: the message has the valid alternatives.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _LEADING_ZERO.fullmatch(text):
        raise BadScalar(_leading_zero(text))
    if _NON_FINITE.fullmatch(text):
        raise BadScalar(f"{text} is not a finite number; write a number, or null for none")
    numeric = _INT.fullmatch(text) or _OTHER_INT.fullmatch(text) or _FLOAT.fullmatch(text)
    if numeric and len(text) > MAX_NUMBER_LENGTH:
        raise BadScalar(f"a number of {len(text)} digits is too long; write a smaller one")
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise BadScalar(f"{text} is too large for a number; write a smaller one")
        return number
    return text


def _leading_zero(text: str) -> str:
    sign, digits = text.rstrip("0123456789"), text.lstrip("+-").lstrip("0") or "0"
    octal = "0o" + digits
    if set(digits) <= set("01234567"):
        eight = int(digits, 8)
        return (
            f"YAML 1.1 reads {text} as {sign}{eight}, YAML 1.2 as {sign}{digits}; write "
            f"{sign}{digits}, or {f'{eight} ({octal})' if sign else octal} for octal"
        )
    return f"{text} has a leading zero, which YAML versions read differently; write {sign}{digits}"
