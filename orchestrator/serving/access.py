"""Who may ask, and what every answer carries: the outermost layer of the service."""

import asyncio
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.addresses import is_loopback
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.page.page_files import CONTENT_SECURITY_POLICY
from orchestrator.serving.refused_request import Refused
from orchestrator.serving.service_log import log_event
from orchestrator.serving.service_metrics import ServiceMetrics

OPEN_PATHS = ("/", "/health", "/ready")
OPEN_PREFIX = "/page/"
"""The page and its files hold nothing of the model."""
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        f"{CONTENT_SECURITY_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class AccessOptions:
    """Who may ask."""

    token: str | None = None
    """That clients send as `Authorization: Bearer TOKEN`; None: anyone may ask."""
    hosts: Sequence[str] | None = None
    """Names by which clients may call the service; None: any. A page of another site can point its
    own name at this machine, and would ask with it."""
    log_requests: bool = False
    """Whether each request is logged, not only those that fail."""


def access_options(
    host: str, token: str | None, allowed_hosts: Sequence[str], *, log_requests: bool
) -> AccessOptions:
    """Return who may ask. Raises UsageError if anybody on the network might."""
    if is_loopback(host):
        names = (*LOOPBACK_NAMES, host, *allowed_hosts)
        return AccessOptions(token, tuple(name.lower() for name in names), log_requests)
    if token is None:
        raise UsageError(
            f"--host {host}: whoever reaches this address could use the service; give "
            "--token-file FILE, or --host 127.0.0.1"
        )
    names = tuple(name.lower() for name in allowed_hosts)
    return AccessOptions(token, names or None, log_requests)


def is_private(mode: int, owner: int) -> bool:
    """Return whether a file's mode keeps its content from others.

    Only the owner may have rights; the group may read a file of root, who alone can have chosen
    it. That is PostgreSQL's rule for its private key. A secret that is mounted into a container is
    such a file: of root and the group of the process, 0440.
    """
    return not mode & (0o037 if owner == 0 else 0o077)


def read_token(path: Path) -> str:
    """Read the token in the first line of a file that others may not read; see ``is_private``.

    Raises UsageError if it is too short, EnvironmentProblem if it cannot be read or others can.
    """
    try:
        found, lines = path.stat(), path.read_text().splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise EnvironmentProblem(f"the token in {path} cannot be read: {reason}") from error
    except ValueError as error:
        raise UsageError(f"{path}: the file holds no text, so no token") from error
    token = lines[0].strip() if lines else ""
    if not is_private(found.st_mode, found.st_uid):
        raise EnvironmentProblem(
            f"others may read the token in {path}; give a file of mode 600, its owner alone"
        )
    if len(token) < SHORTEST_TOKEN or not token.isascii() or " " in token:
        raise UsageError(
            f"{path}: the first line is no token: at least {SHORTEST_TOKEN} ASCII characters "
            "without spaces, such as of `openssl rand -hex 32`"
        )
    return token


class Access:
    """Checks host and token, counts and logs requests, and adds headers. Wraps the app."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServiceMetrics,
        options: AccessOptions,
    ) -> None:
        """Wrap ``app``."""
        self._app, self._metrics, self._options = app, metrics, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_marked)
        except Refused as error:
            await answer_refused(error)(scope, receive, send_marked)
        except asyncio.CancelledError:
            status = 499  # the client has left
            raise
        finally:
            self._count(scope, status, time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        """Raise Refused unless this client may ask for this path."""
        headers, path, options = Headers(scope=scope), scope["path"], self._options
        host = headers.get("host", "").rpartition("@")[2]
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if options.hosts is not None and name.strip("[]").lower() not in options.hosts:
            raise Refused(421, "this service is called by another name; see --allowed-host")
        if options.token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return
        given = headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {options.token}".encode()):
            message = "give the token: `Authorization: Bearer TOKEN`"
            raise Refused(401, message, {"WWW-Authenticate": "Bearer"})

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if self._options.log_requests or status >= 500:
            client = (scope.get("client") or [None])[0]
            milliseconds = round(1000 * seconds, 1)
            facts = {"method": scope["method"], "route": route, "client": client}
            log_event("request", **facts, status=status, ms=milliseconds)


def answer_refused(error: Refused) -> JSONResponse:
    """Return the answer to a request that is refused."""
    return JSONResponse({"error": str(error)}, error.status, error.headers)
