"""Move the alias of a registered model, and record on the versions why: the tags gate.<alias>."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.registry.card import add_evaluation
from orchestrator.registry.gate import GateDecision
from orchestrator.registry.registry import find_version, require_database
from orchestrator.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "gate."
LONGEST_REASON = 500
"""Characters: MLflow's database has room for 5,000 in a tag."""


def version_with_alias(client: "MlflowClient", name: str, alias: str) -> int | None:
    """Return the number of the version that has ``alias``, or None."""
    found = client.get_registered_model(name).aliases.get(alias)
    return None if found is None else int(found)


def read_records(client: "MlflowClient", name: str, version: int) -> dict[str, dict[str, Any]]:
    """Return the records of a version by alias; what is no record is left out."""
    tags = client.get_model_version(name, str(version)).tags
    found = {}
    for key, value in tags.items():
        if key.startswith(PREFIX):
            try:
                record = json.loads(value)
            except ValueError:
                continue
            if isinstance(record, dict):
                found[key.removeprefix(PREFIX)] = record
    return found


def write_record(
    client: "MlflowClient", name: str, version: int, alias: str, record: Mapping[str, Any]
) -> None:
    """Write the record of a decision about ``alias`` on a version; it replaces an earlier one."""
    value = json.dumps({**record, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"})
    client.set_model_version_tag(name, str(version), f"{PREFIX}{alias}", value)


def apply_decision(
    client: "MlflowClient", name: str, version: int, alias: str, decision: GateDecision
) -> bool:
    """Record a decision on the version and its card, and move the alias if it is a promotion.

    Returns whether the decision stands. It does not if another process has moved the alias: the
    version must then be compared with another champion. MLflow cannot move an alias on a condition,
    so between two processes that move it in the same moment the last one wins; both records tell.
    """
    write_record(client, name, version, alias, decision.record())
    if decision.measured:
        card = client.get_model_version(name, str(version)).description or ""
        text = add_evaluation(card, decision.measured, decision.about)
        client.update_model_version(name, str(version), text)
    if decision.promoted:
        if version_with_alias(client, name, alias) != decision.champion:
            return False
        _move(client, name, alias, version, decision.champion)
    return True


def _move(client: "MlflowClient", name: str, alias: str, version: int, before: int | None) -> None:
    """Move the alias; first write on the version which one had it before, for ``roll_back``."""
    client.set_model_version_tag(name, str(version), _before(alias), str(before or ""))
    client.set_registered_model_alias(name, alias, str(version))


def _before(alias: str) -> str:
    """Return the tag that outlives later decisions about the version."""
    return f"{PREFIX}{alias}.before"


def force(spec: str, alias: str, reason: str, uri: str) -> tuple[str, int | None, int]:
    """Give ``alias`` to a version without the gate.

    Returns the model's name, the version that had it, and the one that has it.
    """
    _check_reason(reason)
    with connect(require_database(uri), timeout_s=30) as client:
        found = find_version(client, spec)
        before = version_with_alias(client, found.name, alias)
        if before == found.version:
            raise UsageError(f"{found.title} has the alias {alias} already")
        record = {"promoted": True, "forced": reason, "champion": before}
        write_record(client, found.name, found.version, alias, record)
        _move(client, found.name, alias, found.version, before)
    return found.name, before, found.version


def roll_back(name: str, alias: str, reason: str, uri: str) -> tuple[int, int]:
    """Give ``alias`` back to the version that had it before; return both versions.

    Raises UsageError if no version has it, or no version is known to have had it before.
    """
    _check_reason(reason)
    with connect(require_database(uri), timeout_s=30) as client:
        now = find_version(client, f"{name}@{alias}").version
        before = client.get_model_version(name, str(now)).tags.get(_before(alias), "")
        if not before.isdecimal():
            raise UsageError(
                f"{name}/{now} has no record of a version that had {alias} before it; name one "
                f"with `orchestrator models promote {name}/VERSION --alias {alias} --force REASON`"
            )
        find_version(client, f"{name}/{before}")  # it may have been deleted
        record = read_records(client, name, now).get(alias, {})
        write_record(client, name, now, alias, {**record, "rolled_back": reason})
        client.set_registered_model_alias(name, alias, before)
        client.delete_model_version_tag(name, str(now), _before(alias))
    return now, int(before)


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise UsageError(
            f"the reason has {len(reason)} characters; give one of 1 to {LONGEST_REASON}, which is "
            "recorded on the version"
        )
