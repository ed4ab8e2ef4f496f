"""MLflow's SQLite files for tests that do not test how they are created."""

import functools
import logging
import tempfile
from pathlib import Path


def create_mlflow_database(path: Path) -> Path:
    """Write an empty database with MLflow's tables to ``path``.

    MLflow's migrations take 1.5 s of CPU per file; they run once per process.
    """
    path.write_bytes(_migrated_database())
    return path


@functools.cache
def _migrated_database() -> bytes:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each migration
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        engine = create_engine(f"sqlite:///{path}")
        _initialize_tables(engine)
        engine.dispose()
        return path.read_bytes()
