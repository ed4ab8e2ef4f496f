"""A training's values as ``--set`` takes them, so that they pass the checks of every job."""

import json
from collections.abc import Mapping

from orchestrator.config.sweep import Value


def setting(name: str, value: Value) -> str:
    """``model.gamma=0.5``: a whole number without decimals, for fields that take only such."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return f"{name}={json.dumps(value)}"


def settings(values: Mapping[str, Value]) -> tuple[str, ...]:
    """All of ``values``."""
    return tuple(setting(name, value) for name, value in values.items())
