"""Turn a trial's values into ``--set`` overrides, so that they pass the checks of every job."""

import json
from collections.abc import Mapping

from orchestrator.config.sweep import Value


def to_override(name: str, value: Value) -> str:
    """Return ``model.gamma=0.5``; an integral float loses its decimals, for integer fields."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return f"{name}={json.dumps(value)}"


def to_overrides(values: Mapping[str, Value]) -> tuple[str, ...]:
    """Return one override for each of ``values``."""
    return tuple(to_override(name, value) for name, value in values.items())
