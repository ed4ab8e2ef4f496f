"""Find out why the Ray cluster at RAY_ADDRESS cannot be used, before Ray tries for minutes."""

import importlib.metadata
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from orchestrator.redaction import mask

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With the value 0 Ray does not replace 127.0.0.1 by the machine's own address."""
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
DEFAULT_PORTS = {"ray": 10001, "http": 80, "https": 443}
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
FORMAT = "write HOST:PORT, such as 10.0.0.5:6379, or ray://HOST:10001, or unset RAY_ADDRESS"
START = "start the cluster (`ray start --head`), or correct or unset RAY_ADDRESS"
TOKEN = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token, such as "
    "~/.ray/auth_token of the user who started it"
)


class AddressProblem(Exception):
    """Why a cluster cannot be used."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.remedy = found, remedy


@dataclass(frozen=True)
class RayAddress:
    """Address of a cluster."""

    scheme: str
    """gcs, ray (Ray's client), http or https (the Jobs API)."""
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def names_cluster(address: str) -> bool:
    """Whether RAY_ADDRESS names a cluster; else one is started for each command."""
    return address.strip() not in ("", "local")


def parse_address(text: str) -> RayAddress:
    """Parse RAY_ADDRESS. Raises AddressProblem if it is malformed."""
    shown = f"RAY_ADDRESS={mask(text)}"
    try:
        parts = urlsplit(text if "://" in text else f"gcs://{text}")
        host, port = parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError as error:
        raise AddressProblem(f"{shown} is malformed: {error}", FORMAT) from error
    if parts.scheme not in ("gcs", *DEFAULT_PORTS):
        raise AddressProblem(f"{shown} has the unknown scheme {parts.scheme}://", FORMAT)
    if not host or re.search(r"\s", text) or parts.path.strip("/"):
        raise AddressProblem(f"{shown} is malformed", FORMAT)
    if port is None:
        raise AddressProblem(f"{shown} has no port", FORMAT)
    return RayAddress(parts.scheme, host, port)


def require_answer(text: str, environ: Mapping[str, str]) -> RayAddress:
    """Check that Ray can connect to the address ``text``.

    Returns:
        The address; that of a cluster on this machine for `auto`.

    Raises:
        AddressProblem: nothing answers there, or not as a cluster that accepts this process.
    """
    address = parse_address(_find_local_cluster(environ) if text == "auto" else text)
    shown = mask(text) if text != "auto" else f"{address.host}:{address.port} (RAY_ADDRESS=auto)"
    try:
        socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:  # a host name may have an empty or too long part
        raise AddressProblem(f"{shown} does not answer: {error}", START) from error
    if address.scheme == "gcs":
        _require_control_store(address, shown, environ, use_token=text == "auto")
    return address


def is_on_loopback_only(address: RayAddress, environ: Mapping[str, str]) -> bool:
    """Whether a cluster of this machine listens on loopback and Ray would look elsewhere for it."""
    if not address.is_loopback or environ.get(LOOPBACK_VARIABLE) in ("0", "false"):
        return False
    try:
        socket.create_connection((machine_address(), address.port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return True
    return False


def machine_address() -> str:
    """Return the address of this machine that Ray puts in place of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))  # sends nothing: it only chooses an interface
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def find_token(environ: Mapping[str, str]) -> str:
    """Find Ray's token as Ray does; "" if there is none."""
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token
    file = environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        return Path(file).read_text().strip()
    except (OSError, ValueError):
        return ""


def _find_local_cluster(environ: Mapping[str, str]) -> str:
    """Find the address of a cluster of `ray start` on this machine, as `auto` does."""
    commands: Iterable[list[str]] = (
        each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])
    )
    for command in commands:
        for argument in command if command and command[0].endswith("/raylet") else ():
            if argument.startswith("--gcs-address="):
                return argument.partition("=")[2]
    temporary = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    try:
        return Path(temporary, "ray", "ray_current_cluster").read_text().strip()
    except (OSError, ValueError) as error:
        found = "RAY_ADDRESS=auto, and no Ray cluster runs on this machine"
        raise AddressProblem(found, START) from error


def _require_control_store(
    address: RayAddress, shown: str, environ: Mapping[str, str], *, use_token: bool
) -> None:
    """Check that Ray's control store answers this process, in its version."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would log on stderr
    import grpc  # type: ignore[import-untyped]

    host = f"[{address.host}]" if ":" in address.host else address.host
    tls = environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    token = find_token(environ) if use_token or environ.get("RAY_AUTH_MODE") == "token" else ""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with _open_channel(grpc, f"{host}:{address.port}", environ if tls else None) as channel:
        try:
            call = channel.unary_unary(CHECK_ALIVE)
            reply: bytes = call(b"", timeout=ANSWER_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            raise _explain_refusal(error.code().name, shown, tls=tls, token=token) from error
    running = re.search(rb"\d+\.\d+\.\d+[\w.+]*", reply)
    here = importlib.metadata.version("ray")
    if running and (version := running.group().decode()) != here:
        raise AddressProblem(
            f"{shown} runs Ray {version}, and here is Ray {here}",
            f"install the same version on both sides: pip install ray=={version}",
        )


def _explain_refusal(code: str, shown: str, *, tls: bool, token: str) -> AddressProblem:
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        found = f"{shown} {'rejects this token' if token else 'requires a token'}"
        return AddressProblem(found, TOKEN)
    port = "check that it is the port of the head (6379 by default)"
    if code == "UNIMPLEMENTED":
        return AddressProblem(f"{shown} is not Ray's control store", port)
    if code == "DEADLINE_EXCEEDED":
        found = f"{shown} accepts connections and gave no answer within {ANSWER_TIMEOUT_S:g} s"
        return AddressProblem(found, f"{port}, or restart the head")
    found = f"{shown} does not speak Ray's protocol {'with' if tls else 'without'} TLS"
    other = (
        "unset RAY_USE_TLS if the head has no TLS" if tls else "set RAY_USE_TLS=1 if it uses TLS"
    )
    return AddressProblem(found, f"{port}; {other}")


def _open_channel(grpc: Any, target: str, environ: Mapping[str, str] | None) -> Any:
    """Open a channel; with TLS if ``environ`` is given, as Ray's own variables set it."""
    options = [("grpc.enable_http_proxy", 0)]  # as Ray's own connections
    if environ is None:
        return grpc.insecure_channel(target, options=options)
    files = []
    for name in ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT"):
        try:
            files.append(Path(environ[name]).read_bytes())
        except KeyError as error:
            found = f"RAY_USE_TLS=1, and {name} is not set"
            raise AddressProblem(found, "set it to the file, or unset RAY_USE_TLS") from error
        except OSError as error:
            raise AddressProblem(f"{name}: {error}", "correct it, or unset RAY_USE_TLS") from error
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*files), options=options)
