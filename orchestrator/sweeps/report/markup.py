"""Pieces of HTML. Whatever comes from a job file or a run goes through ``text``, here or there."""

import base64
from collections.abc import Iterable, Sequence
from html import escape as text

from orchestrator.config.sweep import Value
from orchestrator.sweeps.report.facts import compact

__all__ = ["cell", "paragraph", "picture", "section", "table", "text"]


def cell(value: Value, shown: str | None = None, *, mark: str = "") -> str:
    """A cell of a table: the value in short, all of it in its title; ``mark`` is a class."""
    short = compact(value) if shown is None else shown
    full = "" if value is None else f' title="{text(str(value))}"'
    number = isinstance(value, int | float) and not isinstance(value, bool)
    names = " ".join(name for name in ("number" if number else "", mark) if name)
    classes = f' class="{names}"' if names else ""
    return f"<td{classes}{full}>{text(short)}</td>"


def table(
    heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], *, name: str = ""
) -> str:
    """A table: heads as (short, full) names, cells as HTML. One with a name can be sorted."""
    top = "".join(
        f'<th scope="col" title="{text(full)}">{text(short)}</th>' for short, full in heads
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    given = f' id="{name}" class="sortable"' if name else ""
    return (
        f'<div class="wide"><table{given}>\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def paragraph(*sentences: str, mark: str = "") -> str:
    """Sentences, as they are."""
    classes = f' class="{mark}"' if mark else ""
    return f"<p{classes}>{text(' '.join(s for s in sentences if s))}</p>"


def picture(png: bytes, words: str, *, mark: str = "") -> str:
    """A PNG within the page; ``words`` are for those who do not see it."""
    data = base64.b64encode(png).decode()
    classes = f' class="{mark}"' if mark else ""
    return f'<img{classes} alt="{text(words)}" src="data:image/png;base64,{data}">'


def section(name: str, title: str, *parts: str) -> str:
    """A part of the page, with a place to jump to."""
    return "\n".join([f'<section id="{name}">', f"<h2>{text(title)}</h2>", *parts, "</section>"])
