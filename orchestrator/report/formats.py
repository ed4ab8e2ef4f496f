"""Text formats of values, for tables and figures."""

import math
from collections.abc import Iterable

from orchestrator.config.sweep import Value

NONE = "\N{EN DASH}"
"""Placeholder for a missing number."""
LOG_RATIO = 30.0
"""Ratio of largest to smallest above which an axis is logarithmic."""


def format_value_short(value: Value) -> str:
    """Format a value with at most four significant digits; null, true and false as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < 1_000_000):
        return str(value)
    return NONE if math.isnan(value) else f"{value:.4g}"


def shorten(text: str, length: int = 28) -> str:
    """Shorten text to one line of ``length`` characters, leaving out its middle."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    end = (length - 1) // 3
    return f"{line[: length - 1 - end]}…{line[-end:]}"


def spans_magnitudes(values: Iterable[float]) -> bool:
    """Whether positive numbers span enough for a logarithmic axis."""
    found = [value for value in values if math.isfinite(value)]
    return bool(found) and min(found) > 0 and max(found) > LOG_RATIO * min(found)
