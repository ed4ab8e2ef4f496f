"""A report as one HTML document, which asks for nothing: browsers enforce that, too."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from orchestrator.report import markup

HERE = Path(__file__).parent
SORT = (HERE / "sort.js").read_text(encoding="utf-8")
"""Sorts tables of the class ``sortable`` by the column that is clicked."""
_STYLE = (HERE / "base.css").read_text(encoding="utf-8")


def render_document(
    title: str,
    *,
    header: str,
    sections: Sequence[tuple[str, str, str]],
    style: str = "",
    script: str = SORT,
    data: str = "",
    may_refresh: bool = False,
) -> str:
    """Return a whole document.

    Args:
        title: plain text, also the first heading.
        header: HTML below the title.
        sections: anchor, plain title and HTML of each.
        style: CSS after that of all reports.
        script: JavaScript; nothing else runs.
        data: HTML of elements that only the script reads.
        may_refresh: whether the script may ask the page's own server for a newer page.
    """
    links = " ".join(f'<a href="#{name}">{markup.text(word)}</a>' for name, word, _ in sections)
    css, script = f"\n{_STYLE}{style}", f"\n{script}"
    rules = [
        "default-src 'none'", "img-src data:", f"style-src {_source(css)}",
        f"script-src {_source(script)}", "base-uri 'none'", "form-action 'none'",
        *(["connect-src 'self'"] if may_refresh else []),
    ]  # fmt: skip
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{markup.text(title)}</title>\n<style>{css}</style>\n</head>\n<body>",
        f"<header>\n<h1>{markup.text(title)}</h1>\n{header}",
        f'<nav aria-label="Sections">{links}</nav>\n</header>\n<main>',
        *(markup.section(name, word, body) for name, word, body in sections),
        f"</main>\n{data}<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(lines)


def _source(content: str) -> str:
    """Name inline content in a policy by its sum: a browser runs and applies no other."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
