"""A table of prices of one's own: what `cost.prices` and `cost.kind` of a job stand for.

a10g-spot: {gpu_hour: 0.61, currency: EUR}
c7a:       {cpu_hour: 0.04, currency: EUR}

The price is put into the job when it is loaded. So the stored job says what was paid, and the
workers need no table.
"""

import difflib
from pathlib import Path

from pydantic import ValidationError

from orchestrator.config.env_refs import References
from orchestrator.config.job import Price
from orchestrator.config.messages import Wording
from orchestrator.config.read_file import read_text
from orchestrator.config.yaml_source import KeyPath, Mistake, Source, parse
from orchestrator.errors import JobFileError

PRICES, KIND = ("cost", "prices"), ("cost", "kind")


def fill_in_price(source: Source, folder: Path) -> None:
    """Put the price of the table into ``source``, in place of the table; mistakes go there too.

    Args:
        folder: where a relative path of the table starts.
    """
    cost = source.data.get("cost")
    if not isinstance(cost, dict) or not isinstance(cost.get("prices"), str):
        return  # there is none, or the checks of the fields say what is wrong
    own = [key for key in Price.model_fields if cost.get(key) is not None]
    if own:
        at: KeyPath = ("cost", own[0])
        _mistake(source, at, "is given beside cost.prices; keep the price or the table")
    elif cost.get("kind") is None:
        _mistake(source, PRICES, "needs the kind of machine too; add `kind: <name>` under `cost:`")
    elif isinstance(cost["kind"], str):
        table = _table(source, folder / Path(cost["prices"]).expanduser())
        price = None if table is None else _price(source, table, cost["kind"])
        if price is not None:
            del cost["prices"]
            cost |= price.model_dump()


def _table(source: Source, path: Path) -> Source | None:
    """The table at ``path``; None if it cannot be read."""
    try:
        table = parse(read_text(path), str(path))
    except JobFileError as error:
        _mistake(source, PRICES, str(error))
        return None
    if table.readable and not isinstance(table.data, dict):
        _mistake(source, PRICES, f"{path} has no kinds; write `a10g-spot: {{gpu_hour: 0.61}}`")
        return None
    source.mistakes += table.mistakes
    return table if table.readable else None


def _price(source: Source, table: Source, kind: str) -> Price | None:
    """The price of ``kind`` in the table; None if there is none, or if it is wrong."""
    path = table.position(()).file
    if kind not in table.data:
        close = difflib.get_close_matches(kind, table.data, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(table.data)}"
        _mistake(source, KIND, f"{kind!r} is no kind of {path}; {hint}")
        return None
    entry = table.data[kind]
    if not isinstance(entry, dict):
        words = "is no section; write gpu_hour, cpu_hour and currency below it"
        source.mistakes.append(Mistake(table.position((kind,)), (kind,), words))
        return None
    try:
        return Price.model_validate(entry, strict=True)
    except ValidationError as error:
        wording = Wording({"cost": entry}, References(), set())
        for details in error.errors(include_url=False):
            where: KeyPath = (kind, *details["loc"])
            words = (
                f"unknown key; a price has: {', '.join(Price.model_fields)}"
                if details["type"] == "extra_forbidden"
                else wording.message({**details, "loc": ("cost", *details["loc"])})
            )
            source.mistakes.append(Mistake(table.position(where), where, words))
        return None


def _mistake(source: Source, path: KeyPath, message: str) -> None:
    source.mistakes.append(Mistake(source.position(path), path, message))
