"""Check the addresses of servers and storages as users give them."""

import ipaddress
import re
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.system_folders import system_folder

BUCKET = r"[A-Za-z0-9$][A-Za-z0-9._-]*"
BUCKET_AND_ACCOUNT = rf"{BUCKET}@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net"
OBJECT_STORES = {
    "s3": "s3://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "az": "az://container/prefix",
    "abfs": "abfs://container@account.dfs.core.windows.net/prefix",
    "abfss": "abfss://container@account.dfs.core.windows.net/prefix",
}
"""Schemes of object stores, each with the form of its URIs."""
_NO_SLASHES = re.compile(r"(file|https?|s3a?|gs|gcs|az|abfss?):")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``, an address or a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def split_address(address: str, default_scheme: str = "") -> SplitResult:
    """Split a URL, or HOST:PORT if there is a ``default_scheme``.

    Raises ValueError, with what is wrong, if the address has no host or no valid port. The message
    repeats nothing of the address, which may contain a password.
    """
    try:
        parts = urlsplit(address if "://" in address else f"{default_scheme}://{address}")
        port = parts.port
    except ValueError as error:
        raise ValueError(explain_invalid(error)) from None
    host = parts.hostname or ""
    if not host or port == 0:
        raise ValueError("it has no host" if not host else "its port is 0")
    if "%" in host and ":" not in host:  # in IPv6, % begins a zone
        raise ValueError("its host has a %; write the : and @ before the host as they are")
    return parts


def explain_invalid(error: ValueError) -> str:
    """Say what ``urlsplit`` refuses, without the parts of the address that it quotes."""
    reasons = {
        "Port could": "its port is not a number",
        "Port out": "its port is not between 1 and 65535",
        "Invalid IPv6": "it has a [ without a ]",
        "does not appear": "what is in [ ] is not an IP address",
    }
    text = str(error)
    return next((why for sign, why in reasons.items() if sign in text), "it is not a URL")


def shown_endpoint(url: str, setting: str) -> str:
    """Return the endpoint of a store for messages, without the credentials that some URLs contain.

    Raises EnvironmentProblem, which names the ``setting`` it comes from, if it is not valid.
    """
    try:
        parts = split_address(url)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=host, query="", fragment="").geturl()
    except ValueError as error:
        raise EnvironmentProblem(
            f"{setting}: {mask(url)} is not a valid address: {error}; use http://HOST:PORT"
        ) from error


def storage_uri_problem(uri: str) -> str | None:
    """Say what is wrong with the storage ``uri``, and what to use; None if it is usable.

    Valid are a folder, ``file:///folder`` and the forms of OBJECT_STORES. A prefix with . or .. is
    refused, since object stores do not resolve them, and so are /proc and the like.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator and (found := _NO_SLASHES.match(uri)):
        return f"lacks the slashes after {found[0]}; write {found[0]}//"
    if not separator:
        return system_folder_problem(uri)
    if scheme == "file" and re.match(r"(localhost)?/", rest):
        return system_folder_problem(unquote(rest.removeprefix("localhost")))
    if scheme in OBJECT_STORES:
        return _object_uri_problem(scheme, rest)
    s3, google, azure, *_ = OBJECT_STORES.values()
    return f"is not a storage URI; use a folder, file:///folder, {s3}, {google} or {azure}"


def system_folder_problem(path: str) -> str | None:
    """Say that ``path`` is in /proc or the like, where no file can be kept; else None."""
    found = system_folder(path)
    return found and f"is in {found}, which holds the system's state and no files; use a folder"


def _object_uri_problem(scheme: str, rest: str) -> str | None:
    bucket, _, prefix = rest.partition("/")
    names_account = scheme.startswith("abfs")
    if "@" in bucket and not names_account:
        return "has credentials in it; give them by the variables of the store instead"
    if not re.fullmatch(BUCKET_AND_ACCOUNT if names_account else BUCKET, bucket):
        return f"has no valid bucket or container; use {OBJECT_STORES[scheme]}"
    parts = prefix.rstrip("/").split("/") if prefix.strip("/") else []
    if any(part in ("", ".", "..") for part in parts):
        resolved = "/".join(_resolve(parts))
        return f"has a part that is empty, . or ..; use {scheme}://{bucket}/{resolved}".rstrip("/")
    return None


def _resolve(parts: list[str]) -> list[str]:
    kept: list[str] = []
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return kept
