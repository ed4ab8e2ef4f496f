"""HTML elements. Text from job files and runs is escaped with ``text``, here or by the caller."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape as text

from orchestrator.config.sweep import Value
from orchestrator.report.formats import format_value_short

__all__ = ["cell", "definitions", "paragraph", "picture", "section", "table", "text", "wide"]


def cell(value: Value, shown: str | None = None, *, mark: str = "") -> str:
    """Make a table cell with a short value and the full one as its title; ``mark`` is a class."""
    short = format_value_short(value) if shown is None else shown
    full = "" if value is None else f' title="{text(str(value))}"'
    number = isinstance(value, int | float) and not isinstance(value, bool)
    names = " ".join(name for name in ("number" if number else "", mark) if name)
    classes = f' class="{names}"' if names else ""
    return f"<td{classes}{full}>{text(short)}</td>"


def table(
    heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], *, name: str = ""
) -> str:
    """Make a table from HTML cells and (short, full) column names; sortable if it has a name."""
    top = "".join(f'<th scope="col" title="{text(f)}">{text(s)}</th>' for s, f in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    given = f' id="{name}" class="sortable"' if name else ""
    return wide(f"<table{given}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")


def wide(element: str) -> str:
    """Let an element scroll sideways on narrow screens, with the keyboard, too."""
    return f'<div class="wide" tabindex="0">{element}</div>'


def paragraph(*sentences: str, mark: str = "") -> str:
    """Make a paragraph of plain sentences."""
    classes = f' class="{mark}"' if mark else ""
    return f"<p{classes}>{text(' '.join(s for s in sentences if s))}</p>"


def picture(content: bytes, alt: str, kind: str = "png", extra: str = "") -> str:
    """Embed a picture in the page, with an alternative text; ``extra`` are further attributes."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{text(alt)}"{extra} src="data:image/{kind};base64,{data}">'


def definitions(rows: Mapping[str, str]) -> str:
    """Make a list of names and what they are."""
    items = "\n".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in rows.items())
    return f"<dl>\n{items}\n</dl>"


def section(name: str, title: str, *parts: str) -> str:
    """Make a section of the page with an anchor."""
    return "\n".join([f'<section id="{name}">', f"<h2>{text(title)}</h2>", *parts, "</section>"])
