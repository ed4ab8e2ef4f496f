"""Name the proxy that requests to a server go through, which explains many refusals."""

import os
import urllib.request
from urllib.parse import urlsplit

from orchestrator.redaction import mask


def describe_proxy(url: str) -> str:
    """Return a remedy that names the proxy for ``url``, credentials masked; "" without a proxy.

    Follows the rules of urllib, which requests and botocore share: HTTP_PROXY, HTTPS_PROXY and
    ALL_PROXY in lower or upper case, unless NO_PROXY lists the host.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if not host or scheme not in proxies or urllib.request.proxy_bypass(host):
        return ""
    variables = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    name = next((each for each in variables if os.environ.get(each)), variables[1]).upper()
    return (
        f"requests to {host} go through the proxy {name}={mask(proxies[scheme])}; if it can be "
        f"reached directly, set NO_PROXY={host}"
    )
