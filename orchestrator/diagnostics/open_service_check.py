"""Find a served model on this machine that asks for no token."""

import http.client
import json
from dataclasses import dataclass

from orchestrator.addresses import is_loopback
from orchestrator.diagnostics.open_cluster_check import listening_addresses

TIMEOUT_S = 5.0
LONGEST_ANSWER = 1_000_000


@dataclass(frozen=True)
class OpenService:
    """A running `orchestrator serve` that requires no token."""

    model: str
    """NAME/VERSION."""
    reachable_at: str
    """Address at which other machines reach it; empty if only this machine does."""


def find_open_service(port: int) -> OpenService | None:
    """Ask what listens on 127.0.0.1:``port``.

    Returns None unless it is a served model that answers without a token.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v1/model", headers={"Host": "localhost"})
        answer = connection.getresponse()
        facts = json.loads(answer.read(LONGEST_ANSWER)) if answer.status == 200 else None
    except (OSError, ValueError, RecursionError, http.client.HTTPException):  # something else
        return None
    finally:
        connection.close()
    if not isinstance(facts, dict) or facts.get("token_required") is not False:
        return None
    others = (ip for ip in listening_addresses(port) if not is_loopback(ip))
    return OpenService(f"{facts.get('name')}/{facts.get('version')}", next(others, ""))
