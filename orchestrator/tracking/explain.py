"""Explain the errors of MLflow: what is wrong, what to do, and whether waiting may help."""

import sqlite3

from orchestrator.config.paths import sqlite_path
from orchestrator.redaction import mask
from orchestrator.temporary_folder import is_full_temporary_disk
from orchestrator.tracking.database_refusals import (
    missing_module,
    refused_by_sqlite,
    wrong_schema,
)
from orchestrator.tracking.refusals import RETRYABLE_STATUS, Refusal, first_line, status_of
from orchestrator.tracking.server_refusals import refused_by_server

# Errors that do not pass: a wrong address, a missing module or folder.
_PERMANENT_ERRORS = (
    ImportError,
    ValueError,
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


def explain(uri: str, error: BaseException) -> Refusal:
    """Explain an ``error`` that a request to the MLflow at ``uri`` raised."""
    text, database = mask(str(error)), sqlite_path(uri)
    if isinstance(error, ModuleNotFoundError):
        return missing_module(error)
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return wrong_schema(uri, text)
    if database is not None and (isinstance(error, sqlite3.Error) or "(sqlite3." in text):
        return refused_by_sqlite(database, text)
    if uri.startswith(("http://", "https://")):
        found = refused_by_server(uri, error, text)
        if found is not None:
            return found
    first = first_line(error)
    if isinstance(error, OSError) and not _is_request_error(error):
        advice = "make it writable, or set tracking.uri to another address"
        if is_full_temporary_disk(error):  # MLflow's client writes each file there first
            advice = "free up space there, or set TMPDIR to another folder"
        return Refusal(f"cannot be used: {first}", advice, not isinstance(error, _PERMANENT_ERRORS))
    advice = "start the server or correct tracking.uri; sqlite:///mlflow.db needs no server"
    return Refusal(f"cannot be used: {first}", advice, _may_pass(error))


def _may_pass(error: BaseException) -> bool:
    from mlflow.exceptions import InvalidUrlException

    if isinstance(error, (InvalidUrlException, *_PERMANENT_ERRORS)):
        return False
    status = status_of(error, str(error))
    return status in RETRYABLE_STATUS or not 400 <= status < 500


def _is_request_error(error: BaseException) -> bool:
    return type(error).__module__.startswith("requests")
