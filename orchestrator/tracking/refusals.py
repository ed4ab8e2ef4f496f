"""Explain the errors of MLflow: what is wrong, what to do, and whether waiting may help."""

import os
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.config.paths import sqlite_path
from orchestrator.proxies import proxy_variable
from orchestrator.redaction import mask

_RETRYABLE_STATUS = (408, 429)
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
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
}
"""Packages to install for modules of another name."""


@dataclass(frozen=True)
class Refusal:
    """An error of MLflow in words."""

    problem: str
    """Follows the address of MLflow."""
    advice: str
    may_pass: bool
    """Whether the same request may work later."""


def explain(uri: str, error: BaseException) -> Refusal:
    """Explain an ``error`` that a request to the MLflow at ``uri`` raised."""
    text, database = mask(str(error)), sqlite_path(uri)
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error)
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return _schema(uri, text)
    if database is not None and (isinstance(error, sqlite3.Error) or "(sqlite3." in text):
        return _sqlite(database, text)
    if uri.startswith(("http://", "https://")):
        found = _tls(text) or _proxy(uri, text) or _answer(uri, error, text)
        found = found or _no_connection(text)
        if found is not None:
            return found
    first = first_line(error)
    if isinstance(error, OSError) and not _is_request_error(error):
        advice = "make it writable, or set tracking.uri to another address"
        return Refusal(f"cannot be used: {first}", advice, not isinstance(error, _PERMANENT_ERRORS))
    advice = "start the server or correct tracking.uri; sqlite:///mlflow.db needs no server"
    return Refusal(f"cannot be used: {first}", advice, _may_pass(error))


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, without passwords."""
    lines = mask(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _missing_module(error: ModuleNotFoundError) -> Refusal:
    module = (error.name or "").partition(".")[0]
    name = _DRIVERS.get(module, module)
    problem = f"needs the Python module {module}, which is not installed"
    advice = f"run `pip install {name}`"
    if module == "psycopg":
        advice += ", or write postgresql+psycopg2:// for psycopg2"
    return Refusal(problem, advice, may_pass=False)


def _schema(uri: str, text: str) -> Refusal:
    """A database of another version of MLflow."""
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


def _sqlite(database: Path, text: str) -> Refusal:
    if database.is_dir():
        advice = "set tracking.uri to a file, such as sqlite:///mlflow.db"
        return Refusal("is a folder", advice, may_pass=False)
    for pattern, problem, advice in _SQLITE:
        if re.search(pattern, text):
            return Refusal(problem, advice, may_pass="locked" in pattern)
    first = text.strip().splitlines()[0]
    return Refusal(f"cannot be used: {first}", "set tracking.uri to another file", may_pass=False)


def _tls(text: str) -> Refusal | None:
    if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
        if re.search("mismatch|doesn't match|not valid for", text):
            problem = "has a certificate for another name"
            advice = "use a name of its certificate in tracking.uri"
        elif "expired" in text:
            problem, advice = "has an expired certificate", "renew it on the server"
        else:
            problem = "has a certificate that this machine does not trust"
            advice = (
                "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of its authority (a PEM "
                "file), or for a test MLFLOW_TRACKING_INSECURE_TLS=true"
            )
        return Refusal(problem, advice, may_pass=False)
    if (found := re.search(r"TLS CA certificate bundle, invalid path: (.*)", text)) is not None:
        return Refusal(
            f"cannot be checked: there is no certificate file {found[1]}",
            "correct MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE",
            may_pass=False,
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return Refusal("does not use TLS", "write http:// in tracking.uri", may_pass=False)
    return None


_OWN_403 = re.compile("Invalid Host header|Response body: 'Permission denied'")
"""What MLflow itself answers with status 403."""


def _proxy(uri: str, text: str) -> Refusal | None:
    """A request that a proxy refused, or that it could not deliver."""
    from requests.utils import should_bypass_proxies

    variable = proxy_variable(uri)
    if not variable or should_bypass_proxies(uri, None):  # which knows networks in NO_PROXY, too
        return None
    status = _status_in(text)
    from_proxy = "ProxyError" in text
    may_be_the_proxys = status in (403, 407, 502, 503, 504) and not _OWN_403.search(text)
    # A proxy passes https:// on as it is, so that every answer to it is the server's.
    if not from_proxy and not (may_be_the_proxys and uri.startswith("http://")):
        return None
    host = urlsplit(uri).hostname or ""
    return Refusal(
        f"is out of reach through the proxy of {variable}",
        f"if this machine reaches it directly, run `export NO_PROXY={host}` (with what NO_PROXY "
        f"holds already); else correct {variable}",
        may_pass=not from_proxy and status in (502, 503, 504),
    )


def _answer(uri: str, error: BaseException, text: str) -> Refusal | None:
    """An answer that is not the expected one."""
    status = _status_of(error, text)
    if "Invalid Host header" in text:
        host = urlsplit(uri).netloc.rpartition("@")[2]
        return Refusal(
            f"refuses its own name {host} (403 Invalid Host header)",
            "start the server with this name in `--allowed-hosts`, or use one that it allows in "
            "tracking.uri",
            may_pass=False,
        )
    if "not in a valid JSON format" in text or 300 <= status < 400:
        return Refusal(
            "answers with a web page or a redirect instead of MLflow's API",
            "a proxy, a login page or another program is there; correct the address in "
            "tracking.uri",
            may_pass=False,
        )
    if "INTERNAL_ERROR: Response: " in text:  # MLflow drops its status
        return Refusal(
            f"answers with an error that is not MLflow's: {text.partition('Response: ')[2][:200]}",
            "a proxy or another program is there; correct the address in tracking.uri, or set "
            "MLFLOW_TRACKING_TOKEN if it requires one",
            may_pass=False,
        )
    if status == 404 and ("error code 404" in text or "ENDPOINT_NOT_FOUND" in text):
        return _no_endpoint(text)
    if not 400 <= status < 500 or status in _RETRYABLE_STATUS:
        return None
    return Refusal(*_refused_request(status, error), may_pass=False)


def _refused_request(status: int, error: BaseException) -> tuple[str, str]:
    """Problem and advice of an answer with a status of 4xx."""
    if status == 401:
        given = next((name for name in _CREDENTIALS if os.environ.get(name)), None)
        if given is not None:
            return f"refuses {given} (401)", f"correct {' or '.join(_CREDENTIALS)}"
        set_them = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return "requires a user and a password (401)", f"{set_them}, or MLFLOW_TRACKING_TOKEN"
    if status == 403:
        return (
            f"refuses this user (403): {_detail(error)}",
            "ask for the permission, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "to those of another user",
        )
    if status == 413:
        return (
            "refuses a file as too large (413)",
            "raise the limit of the proxy in front of it, such as nginx's client_max_body_size",
        )
    advice = "correct what it names, or tracking.uri"
    return f"refuses the request ({status}): {_detail(error)}", advice


_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")


def _no_endpoint(text: str) -> Refusal:
    found = re.search(r"endpoint (\S+)", text)
    if found is None or found[1].endswith("experiments/search"):
        return Refusal(
            "has no MLflow API at this path (404)",
            "if a proxy serves it under a prefix, add that to tracking.uri, as in "
            "http://HOST/mlflow; else correct the address",
            may_pass=False,
        )
    return Refusal(
        f"does not know {found[1]} (404): its MLflow is older than the {version('mlflow')} here",
        "upgrade the server, or install its version of MLflow here",
        may_pass=False,
    )


_CONNECTION: tuple[tuple[str, str, str], ...] = (
    ("NameResolutionError|Failed to resolve", "has a host name that is unknown here", ""),
    ("Connection refused", "does not answer: connection refused", ""),
    ("timed out|Timeout", "does not answer in time", "check its load and the network; or "),
    (
        "closed connection without|RemoteDisconnected|BadStatusLine|Connection reset",
        "closes the connection without an answer",
        "if it uses TLS, write https:// in tracking.uri; or ",
    ),
    (r"too many (\d+) error responses", "is not ready", "check its log; or "),
)


def _no_connection(text: str) -> Refusal | None:
    for pattern, problem, advice in _CONNECTION:
        if (found := re.search(pattern, text)) is not None:
            status = f" (status {found[1]})" if found.groups() else ""
            rest = "start the server or correct tracking.uri; sqlite:///mlflow.db needs no server"
            return Refusal(problem + status, advice + rest, may_pass=True)
    return None


def _may_pass(error: BaseException) -> bool:
    from mlflow.exceptions import InvalidUrlException

    if isinstance(error, (InvalidUrlException, *_PERMANENT_ERRORS)):
        return False
    status = _status_of(error, str(error))
    return status in _RETRYABLE_STATUS or not 400 <= status < 500


def _status_of(error: BaseException, text: str) -> int:
    """HTTP status of an answer; 0 if there was none."""
    from mlflow.exceptions import MlflowException

    if (status := _status_in(text)) or not isinstance(error, MlflowException):
        return status or http_status(getattr(error, "response", None))
    return int(error.get_http_status_code())


def _status_in(text: str) -> int:
    """MLflow maps most statuses to 500, but its message has the one of the answer."""
    found = re.search(r"error code (\d{3}) != 200|too many (\d{3}) error responses", text)
    return int(found[1] or found[2]) if found else 0


def http_status(response: Any) -> int:
    """Get the status from a response of `requests` or boto3; 0 if there was none."""
    if isinstance(response, Mapping):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return int(getattr(response, "status_code", 0))


def _is_request_error(error: BaseException) -> bool:
    return type(error).__module__.startswith("requests")


def _detail(error: BaseException) -> str:
    """The server's own words, short and without a page's markup."""
    text = mask(getattr(error, "message", "") or str(error))
    body = text.partition("Response body: ")[2].strip("'") or text
    return (re.sub(r"<[^>]*>|\s+", " ", body).strip() or "no reason given")[:200].rstrip(". ")
