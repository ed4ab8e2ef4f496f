"""Format text as Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


def format_value(value: Any) -> str:
    """Format a setting as in a job file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(format_value(inner) for inner in value)}]"
    return str(value).removesuffix(".0")


def to_sentence(text: str) -> str:
    """Capitalize ``text`` and end it with a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def code(text: str) -> str:
    """Format ``text`` as code."""
    return f"`{text}`"


def escape(text: str) -> str:
    """Convert the text of a docstring: ``code`` to `code`; escape what would be markup."""
    parts = re.split(r"(``?[^`]+``?)", text)
    for i, part in enumerate(parts):
        parts[i] = code(part.strip("`")) if i % 2 else re.sub(r"([<*])", r"\\\1", part)
    return "".join(parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; the text of a cell becomes one line."""
    lines = [header, ["---" for _ in header], *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in row)} |" for row in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
