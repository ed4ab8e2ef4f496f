"""Check whether a Ray cluster accepts requests without a token, and from which machines."""

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import psutil

from orchestrator.addresses import is_loopback, split_address

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class OpenCluster:
    """A cluster that requires no token."""

    address: str
    """host:port that was checked."""
    reachable_at: str
    """Address at which other machines reach it; empty if only this machine does."""


def find_open_cluster(address: str) -> OpenCluster | None:
    """Check the cluster at ``address`` (http://HOST:8265 or HOST:6379).

    Returns None if it requires a token, or does not answer, so that nothing is known.
    """
    try:
        parts = split_address(address, "gcs")
    except ValueError:
        return None
    host, scheme = parts.hostname or "", parts.scheme
    port = parts.port or {"http": 80, "https": 443, "gcs": 6379}.get(scheme, 0)
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
    if not is_loopback(host):
        return OpenCluster(shown, shown)
    # Ray's own ports listen at the addresses that its nodes have registered.
    others = (ip for ip in [*listening_addresses(port), *nodes] if not is_loopback(ip))
    return OpenCluster(shown, next(others, ""))


def listening_addresses(port: int) -> list[str]:
    """Local addresses at which a process listens on TCP ``port``; [] where that is unknown."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # macOS shows them to root only
        return []
    listening = [each.laddr for each in found if each.status == psutil.CONN_LISTEN]
    return [address.ip for address in listening if address and address.port == port]


def _get(url: str) -> Any:
    """Fetch JSON from ``url`` without a token; None if that fails."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):  # not HTTP, or cut off
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
