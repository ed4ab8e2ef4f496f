"""MLflow's SQLite files for tests that are about something else than how they are made."""

import functools
import logging
import tempfile
from pathlib import Path


def ready(path: Path) -> Path:
    """Put a database with MLflow's tables and nothing in them at ``path``.

    MLflow's migrations take 1.5 s of CPU for each file; their outcome is always the same.
    """
    path.write_bytes(_made_by_mlflow())
    return path


@functools.cache
def _made_by_mlflow() -> bytes:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of tables, to tests as well
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        engine = create_engine(f"sqlite:///{path}")
        _initialize_tables(engine)
        engine.dispose()
        return path.read_bytes()
