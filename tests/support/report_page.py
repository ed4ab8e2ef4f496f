"""Read a report back: its elements, its text, the points in it, and what it would ask for."""

import json
import re
from html.parser import HTMLParser
from typing import Any

ASKING = (
    "src",
    "srcset",
    "href",
    "xlink:href",
    "action",
    "formaction",
    "data",
    "poster",
    "background",
)
VOID = ("meta", "img", "br", "link", "input", "hr")


class ReportPage(HTMLParser):
    """A parsed report; every tag has to be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.contents: dict[str, str] = {"style": "", "script": "", "points": "", "pre": ""}
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, list[list[dict[str, str]]]] = {}
        self._table = ""
        self._reads_points = False
        self.feed(page)
        self.close()
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID and not self.source_closes_itself():
            self.open.append(tag)
        self._reads_points = tag == "script" and found.get("id") == "points"
        if tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self._table = found.get("id") or found.get("class") or "other"
            self.tables.setdefault(self._table, [])
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append({"title": found.get("title") or "", "text": ""})

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def source_closes_itself(self) -> bool:
        return (self.get_starttag_text() or "").endswith("/>")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in ("style", "script", "pre"):
            self.contents["points" if self._reads_points else inside] += data
        if inside not in ("style", "script"):
            self.words.append(data)
        if self.headings and inside == f"h{self.headings[-1][0]}":
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)
        if inside in ("td", "th"):
            self.tables[self._table][-1][-1]["text"] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def points(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.contents["points"])
        return found

    def series(self, name: str, run: int = 0) -> dict[int, float]:
        """The embedded points of a metric of one run."""
        steps, values = self.points["metrics"][name][run]
        return dict(zip(steps, map(float, values), strict=True))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of a kind."""
        return [attrs for name, attrs in self.tags if name == tag]

    def requests(self) -> list[str]:
        """What a browser would fetch for the page, apart from data that is in it."""
        asked = [
            str(attrs[name]) for _, attrs in self.tags for name in ASKING if attrs.get(name)
        ]  # fmt: skip
        asked += re.findall(r"url\(([^)]*)\)", self.contents["style"])
        asked += re.findall(r"@import[^;]*", self.contents["style"])
        asked += re.findall(r"\b(?:fetch|import|XMLHttpRequest|WebSocket|EventSource)\b.*",
                            self.contents["script"])  # fmt: skip
        return [each for each in asked if not each.startswith(("data:image/", "#"))]
