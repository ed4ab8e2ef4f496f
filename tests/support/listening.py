"""Ports on which a process and its children listen, and which of them other machines can reach."""

from contextlib import suppress
from ipaddress import ip_address

import psutil


def listening(pid: int) -> set[tuple[str, str]]:
    """Title and address of the processes of ``pid`` that listen."""
    found: set[tuple[str, str]] = set()
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.Error):
                title = "".join(process.cmdline()[:1])  # empty for one that has just ended
                found |= {
                    (title, connection.laddr.ip)
                    for connection in process.net_connections()
                    if connection.status == psutil.CONN_LISTEN
                }
    return found


def exposed(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of ``listening`` that other machines can reach."""
    return {
        (title, address)
        for title, address in found
        if not ip_address(address.removeprefix("::ffff:")).is_loopback
    }
