"""Run a service on this machine with uvicorn."""

import asyncio
import socket

import uvicorn

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.serving.access import AccessOptions
from orchestrator.serving.app import load_app
from orchestrator.serving.service import DrawingService
from orchestrator.serving.service_log import log_event
from orchestrator.serving.stop_signal import stop_signal

BACKLOG = 512
"""Connections that may wait to be accepted."""
KEEP_ALIVE_S = 30
DRAIN_S = 20
"""For requests to end when the service is stopped."""


def serve_here(service: DrawingService, host: str, port: int, access: AccessOptions) -> None:
    """Serve until SIGINT or SIGTERM. Raises OrchestratorError if it cannot start."""
    with _bind(host, port) as listening:
        app = load_app(service, access)
        title, (address, number) = service.main.current.title, listening.getsockname()[:2]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            lifespan="on",
        )
        place = f"http://{f'[{address}]' if ':' in address else address}:{number}/"
        log_event("listening", address=place)
        log_info(f"serving {title} at {place}; stop with Ctrl-C")
        # With uvloop where it is installed, a third faster than Python's own loop. Once it has
        # stopped, uvicorn raises the signal again.
        with (
            stop_signal(),
            asyncio.Runner(loop_factory=config.get_loop_factory()) as run,
        ):
            run.run(uvicorn.Server(config).serve(sockets=[listening]))


def _bind(host: str, port: int) -> socket.socket:
    """Listen before the model is loaded, so that a port in use is told at once."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Only where the protocol is named does asyncio send answers at once (TCP_NODELAY); without
        # it each one waits 40 ms for the client to acknowledge its head.
        listening = socket.socket(family, kind, socket.IPPROTO_TCP)
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
