"""TCP ports for the servers that tests start."""

import contextlib
import os
import socket

FIRST, COUNT = 20_000, 10_000
"""Below the system's range for clients, which might take one before the server does, and above the
ports of Ray's workers."""


def free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive free ports.

    Each worker of pytest-xdist has its own range, so that two never choose the same.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = COUNT // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = FIRST + worker * size
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            drawn = int(probe.getsockname()[1])
        start = first + (drawn + os.getpid()) % (size - count)
        with contextlib.ExitStack() as held:
            try:
                for port in range(start, start + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return start
    raise RuntimeError(f"no {count} free ports in a row")


def free_port() -> int:
    """Return a free port."""
    return free_ports(1)
