"""Look up the price of a job's machines in a table, given as `cost.prices` and `cost.kind`.

a10g-spot: {gpu_hour: 0.61, currency: EUR}
c7a:       {cpu_hour: 0.04, currency: EUR}

The price replaces both keys when the job is loaded. So the stored job contains the price, and the
workers do not need the table.
"""

import difflib
from pathlib import Path

from pydantic import ValidationError

from orchestrator.config.env_refs import EnvReferences
from orchestrator.config.job import Price
from orchestrator.config.messages import ErrorMessages
from orchestrator.config.read_file import read_text
from orchestrator.config.yaml_source import YamlSource, parse_yaml
from orchestrator.errors import UsageError
from orchestrator.home_folder import expand_home

PRICES, KIND = ("cost", "prices"), ("cost", "kind")


def fill_in_price(source: YamlSource, folder: Path) -> None:
    """Replace table and kind by the price; a relative path of the table starts at ``folder``."""
    cost = source.data.get("cost")
    if not isinstance(cost, dict) or not isinstance(cost.get("prices"), str):
        return  # no table, or the fields' own checks report it
    own = [key for key in Price.model_fields if cost.get(key) is not None]
    if own:
        source.report(("cost", own[0]), "is given in addition to cost.prices; keep one of the two")
    elif cost.get("kind") is None:
        source.report(PRICES, "also needs the kind of machine; add `kind: <name>` under `cost:`")
    elif isinstance(cost["kind"], str):
        table = _read_table(source, cost["prices"], folder)
        if table is None:
            return
        price = _find_price(source, table, cost["kind"]) if table.readable else None
        source.mistakes += table.mistakes
        if price is not None:
            del cost["prices"]
            cost |= price.model_dump()


def _read_table(source: YamlSource, name: str, folder: Path) -> YamlSource | None:
    """Return the table called ``name``, or None if it cannot be read."""
    try:
        path = folder / expand_home(name)
        table = parse_yaml(read_text(path), str(path))
    except UsageError as error:
        source.report(PRICES, str(error))
        return None
    if table.readable and not isinstance(table.data, dict):
        source.report(PRICES, f"{path} is not a mapping; write `a10g-spot: {{gpu_hour: 0.61}}`")
        return None
    return table


def _find_price(source: YamlSource, table: YamlSource, kind: str) -> Price | None:
    """Return the price of ``kind`` in the table, or None if it is missing or not valid."""
    if kind not in table.data:
        close = difflib.get_close_matches(kind, table.data, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(table.data)}"
        source.report(KIND, f"{kind!r} is not in {table.position(()).file}; {hint}")
        return None
    entry = table.data[kind]
    if not isinstance(entry, dict):
        table.report((kind,), "must be a mapping; write gpu_hour, cpu_hour and currency under it")
        return None
    try:
        return Price.model_validate(entry, strict=True)
    except ValidationError as error:
        messages = ErrorMessages({"cost": entry}, EnvReferences(), set())
        for details in error.errors(include_url=False):
            message = (
                f"unknown key; a price has: {', '.join(Price.model_fields)}"
                if details["type"] == "extra_forbidden"
                else messages.describe({**details, "loc": ("cost", *details["loc"])})
            )
            table.report((kind, *details["loc"]), message)
        return None
