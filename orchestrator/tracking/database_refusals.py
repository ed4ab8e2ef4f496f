"""Explain why MLflow cannot use a database."""

import re
from importlib.metadata import version
from pathlib import Path

from orchestrator.redaction import mask
from orchestrator.tracking.refusals import Refusal

_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
}
"""Packages to install for modules of another name."""


def missing_module(error: ModuleNotFoundError) -> Refusal:
    """Explain that the driver of a database is not installed."""
    module = (error.name or "").partition(".")[0]
    name = _DRIVERS.get(module, module)
    problem = f"needs the Python module {module}, which is not installed"
    advice = f"run `pip install {name}`"
    if module == "psycopg":
        advice += ", or write postgresql+psycopg2:// for psycopg2"
    return Refusal(problem, advice, may_pass=False)


def wrong_schema(uri: str, text: str) -> Refusal:
    """Explain that a database is of another version of MLflow."""
    installed = f"MLflow {version('mlflow')}"
    found = re.search(r"found version (\w+)|revision identified by '(\w+)'", text)
    if found is None or not _is_known_revision(found[1] or found[2]):
        problem = f"is a database of a newer version than {installed}, which is installed here"
        advice = "install the MLflow that wrote it, or set tracking.uri to another database"
        return Refusal(problem, advice, may_pass=False)
    command = f"mlflow db upgrade '{mask(uri)}'"
    return Refusal(
        f"is a database of an older version than {installed}, which is installed here",
        f"make a backup of it and run `{command}`, or set tracking.uri to another database",
        may_pass=False,
    )


def _is_known_revision(revision: str) -> bool:
    """Whether the installed MLflow knows this schema, so that it is an older one."""
    import mlflow.store.db_migrations

    folder = Path(next(iter(mlflow.store.db_migrations.__path__)), "versions")
    return any(path.name.startswith(revision) for path in folder.glob("*.py"))


_SQLITE: tuple[tuple[str, str, str], ...] = (
    (
        "is locked",
        "is locked by another process",
        "wait for it or end it; for many jobs at once use a server (`mlflow server`)",
    ),
    (
        "readonly database",
        "is read-only",
        "make the file and its folder writable for this user, or set tracking.uri to another file",
    ),
    ("database or disk is full", "is on a full disk", "free some space there"),
    (
        "file is not a database",
        "is not an SQLite database",
        "move it away and start a new one, or restore a backup",
    ),
    (
        "malformed",
        "is a damaged SQLite database",
        "restore a backup, or move it away and start a new one",
    ),
    (
        "no such (table|column)",
        "is a database of another program, or of another version of MLflow",
        "set tracking.uri to another file, or make a backup and run `mlflow db upgrade`",
    ),
    (
        "unable to open database",
        "cannot be opened",
        "make its folder writable for this user, or set tracking.uri to another file",
    ),
)
"""Patterns of SQLite's messages, with the problem and the advice."""


def refused_by_sqlite(database: Path, text: str) -> Refusal:
    """Explain an error of SQLite."""
    if database.is_dir():
        advice = "set tracking.uri to a file, such as sqlite:///mlflow.db"
        return Refusal("is a folder", advice, may_pass=False)
    for pattern, problem, advice in _SQLITE:
        if re.search(pattern, text):
            return Refusal(problem, advice, may_pass="locked" in pattern)
    first = text.strip().splitlines()[0]
    return Refusal(f"cannot be used: {first}", "set tracking.uri to another file", may_pass=False)
