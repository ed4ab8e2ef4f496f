"""Whether a Ray cluster lets in whoever reaches it, and who that is: this machine or others."""

import ipaddress
import json
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 5.0
LISTENING = "0A"
"""The state of a socket that listens, in /proc/net/tcp."""


@dataclass(frozen=True)
class Exposure:
    """A cluster that asks for no token."""

    address: str
    """host:port, where that was found."""
    to: str
    """Where others reach it, or empty if this machine alone does."""


def exposure(address: str) -> Exposure | None:
    """What the cluster at ``address`` (http://HOST:8265 or HOST:6379) gives without a token.

    None if it asks for one, or if it does not answer: nothing is known then.
    """
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    host, scheme = parts.hostname or "", parts.scheme
    try:
        port = parts.port or {"http": 80, "https": 443, "gcs": 6379}.get(scheme, 0)
    except ValueError:
        return None
    shown = f"{host}:{port}"
    if scheme in ("http", "https"):
        server = f"{scheme}://{shown}"
        if _get(f"{server}/api/version") is None:
            return None
        nodes = _node_addresses(server)
    elif scheme == "gcs" and _gcs_answers(shown):
        nodes = []
    else:
        return None
    if not _is_loopback(host):
        return Exposure(shown, shown)
    # Ray's own ports listen where its nodes say that they are.
    others = [local for local in listens_on(port) if not _is_loopback(local)]
    others += [node for node in nodes if not _is_loopback(node)]
    return Exposure(shown, others[0] if others else "")


def listens_on(port: int) -> list[str]:
    """The addresses of this machine on which TCP ``port`` is listened to; [] where unknown."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state = line.split()[:4]
            address, _, number = local.partition(":")
            if state == LISTENING and int(number, 16) == port:
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.append(socket.inet_ntop(family, b"".join(words)))
    return found


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _get(url: str) -> Any:
    """The JSON at ``url``, or None if it does not come without a token."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def _node_addresses(server: str) -> list[str]:
    summary = _get(f"{server}/nodes?view=summary")
    try:
        return [str(node["ip"]) for node in summary["data"]["summary"]]
    except (KeyError, TypeError):
        return []


def _gcs_answers(address: str) -> bool:
    """Whether Ray's control store answers a call without a token."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            call(b"", timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return True
