"""Addresses of MLflow: made independent of the current folder, and printed without passwords."""

import re
from pathlib import Path

from orchestrator.errors import UsageError

SQLITE = "sqlite:///"

_PASSWORD = re.compile(r"(?P<before>[A-Za-z][\w+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)")


def absolute_uri(uri: str) -> str:
    """``uri`` so that it means the same in every folder of this machine.

    Raises:
        UsageError: it is neither a server nor a database that several processes can open.
    """
    if "://" not in uri:
        raise UsageError(
            f"tracking.uri {uri!r} is neither a server nor a database: use http://HOST:PORT for "
            f"an MLflow server, or {SQLITE}mlflow.db for a file that needs no server"
        )
    if not uri.startswith("sqlite:"):
        return uri
    path, _, query = uri.removeprefix(SQLITE).partition("?")
    if not uri.startswith(SQLITE) or not path or path == ":memory:":
        raise UsageError(f"tracking.uri {uri!r} names no file: use {SQLITE}mlflow.db")
    return f"{SQLITE}{Path(path).absolute()}" + (f"?{query}" if query else "")


def sqlite_path(uri: str) -> Path | None:
    """The database file of an absolute ``uri``, or None when it is not SQLite."""
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def redacted(text: str) -> str:
    """``text`` with *** for the password of each URL in it."""
    return _PASSWORD.sub(r"\g<before>***", text)
