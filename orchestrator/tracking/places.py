"""Places of files in a SQLite file of MLflow: find those of a folder that was moved or copied.

MLflow stores the places of its files as absolute paths. If a project's folder is moved or copied,
its database still names the old folder, and MLflow would write new runs there.
"""

import os
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from orchestrator.config.paths import sqlite_path
from orchestrator.errors import EnvironmentProblem

COLUMNS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
)
"""Table, column and condition of all places that MLflow reads or writes files at."""


@dataclass
class Relocation:
    """Places of one database that do not lie in its folder, though their files do."""

    database: Path
    old_folders: list[Path]
    """Where the files were, by the database."""
    changes: list[tuple[str, str, int, str]] = field(default_factory=list)
    """Table, column, row and new place."""
    elsewhere: list[Path] = field(default_factory=list)
    """Old places whose files exist only there: they are not changed."""


def local_path(place: str) -> Path | None:
    """Return the path of a place of files as MLflow stores it; None for servers and buckets."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place) if place.startswith("/") else None


def old_folder(folder: Path, place: Path) -> Path | None:
    """Return where ``folder`` was when ``place`` was written, if the files are in ``folder`` now.

    None if ``place`` exists in ``folder``, also by another path, or its files are not there.
    """
    if _is_inside(place, folder) and place.exists():
        return None
    for parent in place.parents:
        relative = place.relative_to(parent)
        # One name alone, such as mlartifacts, may be any folder; those of runs are unique.
        if len(relative.parts) > 1 and (folder / relative).exists():
            return parent
    return None


def check_not_moved(
    uri: str, experiment: str, column: Literal["name", "experiment_id"] = "name"
) -> None:
    """Raise EnvironmentProblem if files of ``experiment`` would go to a folder's old place.

    Args:
        uri: of MLflow; only a SQLite file can have been moved.
        experiment: its name, or its id for ``experiment_id``.
    """
    database = sqlite_path(uri)
    if database is None or not database.is_file():
        return
    with closing(_open(database)) as connection:
        row = connection.execute(
            "SELECT experiment_id, artifact_location FROM experiments"
            f" WHERE CAST({column} AS TEXT) = ?",
            (experiment,),
        ).fetchone()
        if row is None:
            return
        old = _moved_experiment(connection, database, *row)
    if old is not None:
        raise moved(database, old)


def moved(database: Path, old: Path) -> EnvironmentProblem:
    """Return the error of a database whose files were at ``old``."""
    command = f"orchestrator relocate {shlex.quote(str(database.parent))}"
    is_copy = (old / database.name).is_file()
    return EnvironmentProblem(
        f"{database.parent} was {'copied' if is_copy else 'moved'} from {old}, but {database.name} "
        f"still has MLflow's files there; run `{command}`"
        + (", which leaves the original as it is" if is_copy else "")
        + ", or set tracking.uri to a new file"
    )


def find_databases(folder: Path) -> list[Path]:
    """Find the SQLite files of MLflow in ``folder``, or ``folder`` itself if it is one.

    Raises:
        EnvironmentProblem: a database is locked or cannot be read, so that it may be MLflow's.
    """
    paths = sorted(folder.glob("*.db")) if folder.is_dir() else [folder]
    return [path for path in paths if path.is_file() and _has_experiments(path)]


def _has_experiments(path: Path) -> bool:
    with closing(_open(path)) as database:
        try:
            return bool(database.execute("PRAGMA table_info(experiments)").fetchall())
        except sqlite3.OperationalError as error:
            raise EnvironmentProblem(
                f"{path} cannot be read: {error}; end the processes that use it, and make it "
                "readable"
            ) from error
        except sqlite3.DatabaseError:  # another kind of file
            return False


def find_relocation(database: Path, old_folders: list[Path] | None = None) -> Relocation:
    """Find the places in ``database`` that were left behind when its folder was moved or copied.

    ``old_folders`` are by default derived from the places.

    Raises:
        EnvironmentProblem: it is not a database of MLflow, or cannot be read.
    """
    with closing(_open(database)) as connection:
        try:
            found = Relocation(database, old_folders or _old_folders(connection, database))
            for table, column, row, place in _places(connection):
                _add_change(found, table, column, row, place)
        except sqlite3.Error as error:
            raise _not_mlflow(database, error) from error
    return found


def apply_relocation(found: Relocation) -> Path:
    """Change the places in one transaction; return the backup of the database made before.

    Raises:
        EnvironmentProblem: the database is in use or cannot be written; it is unchanged then.
    """
    backup = found.database.with_name(f"{found.database.name}.{time.strftime('%Y%m%d-%H%M%S')}.bak")
    try:
        with closing(sqlite3.connect(found.database, timeout=5, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # nobody writes between the backup and the end
            try:
                _back_up(found.database, backup)
                for table, column, row, place in found.changes:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
                        (place, row),
                    )
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # SQLite itself rolls back on a full disk
                    database.execute("ROLLBACK")
                backup.unlink(missing_ok=True)
                raise
    except (sqlite3.Error, OSError) as error:
        raise EnvironmentProblem(
            f"{found.database} cannot be changed: {error}; end the processes that use it, make it "
            "and its folder writable, and free up space for a backup; nothing was changed"
        ) from error
    return backup


def _back_up(database: Path, backup: Path) -> None:
    with closing(_open(database)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    shutil.copymode(database, backup)


def _add_change(found: Relocation, table: str, column: str, row: int, place: str) -> None:
    path, folder = local_path(place), found.database.parent
    if path is None:
        return
    is_inside = _is_inside(path, folder)
    if is_inside and path.exists():
        return
    old = next((each for each in found.old_folders if path.is_relative_to(each)), None)
    if old is None:
        return
    new = folder / path.relative_to(old)
    if is_inside and not new.exists():
        return  # deleted, or not written yet
    if table != "experiments" and path.exists() and not new.exists():
        found.elsewhere.append(path)
        return
    found.changes.append((table, column, row, new.as_uri() if "://" in place else str(new)))


def _old_folders(connection: sqlite3.Connection, database: Path) -> list[Path]:
    """Find the folders that the files were in, the innermost first."""
    found = set()
    for table, _, _, place in _places(connection):
        path = local_path(place)
        if path is not None and table != "experiments":
            found.add(old_folder(database.parent, path))
    for row in connection.execute("SELECT experiment_id, artifact_location FROM experiments"):
        found.add(_moved_experiment(connection, database, *row))
    return sorted((each for each in found if each), key=lambda each: -len(each.parts))


def _moved_experiment(
    connection: sqlite3.Connection, database: Path, number: int, location: str
) -> Path | None:
    """Return the folder that an experiment's files were in before it was moved or copied."""
    folder, place = database.parent, local_path(location or "")
    if place is None or (_is_inside(place, folder) and place.exists()):
        return None
    rows = connection.execute(
        "SELECT artifact_uri FROM runs WHERE experiment_id = ? ORDER BY start_time DESC LIMIT 500",
        (number,),
    )
    for (uri,) in rows:
        path = local_path(uri or "")
        old = None if path is None else old_folder(folder, path)
        if old is not None and place.is_relative_to(old):
            return old
    if _is_inside(place, folder):
        return None  # not written yet
    # No run has files here, or there are none. A place on purpose is neither beside a database with
    # the same experiment nor in a folder that is gone. MLflow's own choice is the folder that the
    # experiment was created from, where another database may be.
    is_default = place.parent.name == "mlruns" and place.name.isdigit()
    old = place.parent.parent if is_default else place.parent
    is_copy = _has_experiment(old / database.name, connection, number)
    is_here = (folder / place.relative_to(old)).is_dir()
    is_moved = not place.exists() and (is_here or not old.exists())
    return old if is_copy or is_moved else None


def _has_experiment(original: Path, copy: sqlite3.Connection, number: int) -> bool:
    """Whether the database ``original`` is there and has the experiment of ``copy``."""
    if not original.is_file():
        return False
    query = "SELECT artifact_location, creation_time FROM experiments WHERE experiment_id = ?"
    try:
        with closing(_open(original)) as other:
            rows = [each.execute(query, (number,)).fetchone() for each in (copy, other)]
    except (sqlite3.Error, EnvironmentProblem):  # of an older MLflow, or another kind of file
        return True
    return bool(rows[0] == rows[1])


def _places(connection: sqlite3.Connection) -> Iterator[tuple[str, str, int, str]]:
    for table, column, condition in COLUMNS:
        known = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        if column not in known:
            continue  # an older version of MLflow
        where = f"WHERE {condition}" if condition else ""
        query = f"SELECT rowid, {column} FROM {table} {where}"
        for row, place in connection.execute(query):
            if isinstance(place, str):
                yield table, column, row, place


def _is_inside(place: Path, folder: Path) -> bool:
    """Whether ``place`` is below ``folder``, also by a link or another mount of the same folder."""
    if place.is_relative_to(folder):
        return True
    with suppress(OSError):
        here = os.stat(folder)
        for parent in place.parents:
            with suppress(OSError):
                if os.path.samestat(os.stat(parent), here):
                    return True
    return False


def _open(database: Path) -> sqlite3.Connection:
    """Open a database for reading only."""
    try:
        return sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=5)
    except sqlite3.Error as error:
        raise _not_mlflow(database, error) from error


def _not_mlflow(database: Path, error: sqlite3.Error) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{database} cannot be read as a database of MLflow: {error}; give the folder of the "
        "mlflow.db of your jobs"
    )
