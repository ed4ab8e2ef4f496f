"""Explain why an MLflow server cannot be reached, or what it refuses."""

import os
import re
from importlib.metadata import version
from urllib.parse import urlsplit

from orchestrator.proxies import proxy_variable
from orchestrator.tracking.refusals import (
    RETRYABLE_STATUS,
    Refusal,
    detail,
    status_in,
    status_of,
)


def refused_by_server(uri: str, error: BaseException, text: str) -> Refusal | None:
    """Explain an ``error`` with this ``text`` at the server ``uri``; None if it is another one."""
    found = _tls(text) or _proxy(uri, text) or _answer(uri, error, text)
    return found or _no_connection(text)


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
    status = status_in(text)
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
    status = status_of(error, text)
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
    if not 400 <= status < 500 or status in RETRYABLE_STATUS:
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
            f"refuses this user (403): {detail(error)}",
            "ask for the permission, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "to those of another user",
        )
    if status == 413:
        return (
            "refuses a file as too large (413)",
            "raise the limit of the proxy in front of it, such as nginx's client_max_body_size",
        )
    advice = "correct what it names, or tracking.uri"
    return f"refuses the request ({status}): {detail(error)}", advice


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
