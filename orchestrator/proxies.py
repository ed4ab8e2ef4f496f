"""Name the proxy that requests to a server go through, which explains many refusals."""

import urllib.request

from orchestrator.addresses import split_address
from orchestrator.redaction import mask


def proxy_variable(url: str) -> str:
    """Return the name, in upper case, of the variable with the proxy for ``url``; "" without one.

    Follows urllib's rules, which requests and botocore share: HTTP_PROXY, HTTPS_PROXY and ALL_PROXY
    in lower or upper case, unless NO_PROXY lists the host.
    """
    try:
        parts = split_address(url)
    except ValueError:
        return ""
    proxies = urllib.request.getproxies_environment()
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if scheme not in proxies or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f"{scheme}_proxy".upper()


def describe_proxy(url: str) -> str:
    """Return a remedy that names the proxy for ``url``, credentials masked; "" without a proxy."""
    variable = proxy_variable(url)
    if not variable:
        return ""
    host = split_address(url).hostname
    scheme = variable.removesuffix("_PROXY").lower()
    address = urllib.request.getproxies_environment()[scheme]
    return (
        f"requests to {host} go through the proxy {variable}={mask(address)}; if it can be "
        f"reached directly, set NO_PROXY={host}"
    )
