"""Run a service on this machine with uvicorn."""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.serving.access import AccessOptions
from orchestrator.serving.app import load_app
from orchestrator.serving.service import DrawingService
from orchestrator.serving.service_log import log_event

BACKLOG = 512
"""Connections that may wait to be accepted."""
KEEP_ALIVE_S = 30
DRAIN_S = 20
"""For requests to end when the service is stopped."""


def serve_here(service: DrawingService, host: str, port: int, access: AccessOptions) -> None:
    """Serve until SIGINT or SIGTERM. Raises OrchestratorError if it cannot start."""
    with _bind(host, port) as listening:
        app = load_app(service, access)
        asyncio.run(_serve(app, service.main.current.title, listening))


async def _serve(app: ASGIApp, title: str, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            lifespan="on",
        )
    )
    log_event("listening", address=place)
    log_info(f"serving {title} at {place}; stop with Ctrl-C")
    with _stopping_is_no_failure():
        await server.serve(sockets=[listening])


@contextmanager
def _stopping_is_no_failure() -> Iterator[None]:
    """End normally after SIGINT and SIGTERM, which uvicorn raises again when it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    """Listen before the model is loaded, so that a port in use is told at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"--host {host}: {error.strerror or error}; give an address of this machine"
        ) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise EnvironmentProblem(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --port"
        ) from None
    return listening
