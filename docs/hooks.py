"""Hooks of mkdocs: patterns in the navigation, and links to files outside docs/."""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger("mkdocs.hooks")
"""Below mkdocs' logger, so that a warning ends `mkdocs build --strict`."""
BRANCH = "main"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def _expanded(entry: Any, docs: Path) -> list[Any]:
    """Replace a pattern by the pages that match it, in the order of their names."""
    if isinstance(entry, dict):
        return [
            {title: [page for part in content for page in _expanded(part, docs)]}
            if isinstance(content, list)
            else {title: content}
            for title, content in entry.items()
        ]
    if "*" not in entry:
        return [entry]
    pages = (page.relative_to(docs).as_posix() for page in sorted(docs.glob(entry)))
    return [page for page in pages if not page.endswith("README.md")]


def on_config(config: Any) -> Any:
    """Expand the patterns of the navigation, so that a new page needs no entry."""
    if config.repo_url:
        config.edit_uri = f"edit/{BRANCH}/docs/"
    docs = Path(config.docs_dir)
    config.nav = [new for entry in config.nav for new in _expanded(entry, docs)]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point links that leave docs/ to the repository; without its address keep their text."""

    def rewritten(link: re.Match[str]) -> str:
        text, target = link.groups()
        url = urlsplit(target)
        path = posixpath.normpath(
            posixpath.join("docs", posixpath.dirname(page.file.src_uri), url.path)
        )
        if url.scheme or not url.path or path.startswith("docs/"):
            return link.group()
        if not (Path(config.docs_dir).parent / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        return f"[{text}]({config.repo_url}/blob/{BRANCH}/{path})" if config.repo_url else text

    return LINK.sub(rewritten, markdown)
