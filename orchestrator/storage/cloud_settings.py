"""Places in Google Cloud Storage and Azure, and what the environment says about them.

obstore reads the variables of each cloud itself: GOOGLE_* and AZURE_*. Only what it lacks is here.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.addresses import shown_endpoint
from orchestrator.errors import EnvironmentProblem

if TYPE_CHECKING:
    from obstore.store import AzureConfig

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
EMULATOR = "http://127.0.0.1:10000"
_GOOGLE = "https://storage.googleapis.com"
_URI = re.compile(
    r"(?P<scheme>gs|az)://(?P<bucket>[^/@\s]+)(?:/(?P<prefix>.*))?"
    r"|abfss?://(?P<container>[^/@\s]+)@(?P<account>[a-z0-9]+)\.(?:dfs|blob)\.core\.windows\.net(?:/(?P<below>.*))?"
)


@dataclass(frozen=True)
class CloudPlace:
    """A prefix in a bucket or container."""

    is_azure: bool
    bucket: str
    prefix: str
    account: str | None = None
    """The storage account, if the URI names it."""

    @staticmethod
    def parse(uri: str) -> "CloudPlace":
        """Parse a gs://, az:// or abfs[s]:// URI that has been checked."""
        found = _URI.fullmatch(uri)
        assert found is not None, uri
        if found["scheme"] is None:
            below = (found["below"] or "").strip("/")
            return CloudPlace(True, found["container"], below, found["account"])
        return CloudPlace(
            found["scheme"] == "az", found["bucket"], (found["prefix"] or "").strip("/")
        )

    def endpoint(self) -> str:
        """Return the endpoint for messages. Raises EnvironmentProblem if it is not valid."""
        for setting, url in self._endpoints():
            if url:
                return shown_endpoint(url, setting)
        return _GOOGLE if not self.is_azure else "Azure"  # no account is given yet

    def _endpoints(self) -> Iterator[tuple[str, str | None]]:
        """Yield settings, and the addresses that they give, in the order in which they count."""
        if not self.is_azure:
            yield "GOOGLE_BASE_URL", os.environ.get("GOOGLE_BASE_URL")
            return
        config = self.azure_config()
        if is_on("AZURE_STORAGE_USE_EMULATOR") or config.get("use_emulator"):
            name = "AZURITE_BLOB_STORAGE_URL"
            yield name, os.environ.get(name) or EMULATOR
        yield CONNECTION_STRING, config.get("endpoint")
        for name in ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"):
            yield name, os.environ.get(name)
        account = config.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        yield "account", account and f"https://{account}.blob.core.windows.net"

    def azure_config(self) -> "AzureConfig":
        """Return what the URI and the connection string say; the rest is in variables."""
        config: AzureConfig = {}
        if text := os.environ.get(CONNECTION_STRING):
            config = _parse_connection_string(text)
        if self.account is not None:
            config["account_name"] = self.account
        return config


def is_on(variable: str) -> bool:
    """Whether a variable of the environment is set to something true."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y")


def _parse_connection_string(text: str) -> "AzureConfig":
    """Parse the text that Azure's portal shows beside the keys of an account."""
    parts = dict(part.split("=", 1) for part in text.strip().split(";") if "=" in part)
    config: AzureConfig = {}
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return {"use_emulator": True}
    endpoint, name = parts.get("BlobEndpoint", "").rstrip("/"), parts.get("AccountName")
    if not endpoint and name and "EndpointSuffix" in parts:
        protocol = parts.get("DefaultEndpointsProtocol", "https")
        endpoint = f"{protocol}://{name}.blob.{parts['EndpointSuffix']}"
    if not name and endpoint:
        shown_endpoint(endpoint, CONNECTION_STRING)  # refuses one that cannot be parsed
        name = (urlsplit(endpoint).hostname or "").partition(".")[0]
    if not name:
        raise EnvironmentProblem(
            f"{CONNECTION_STRING} names no account; copy it whole: AccountName=...;AccountKey=..."
        )
    config["account_name"] = name
    if endpoint:
        config["endpoint"] = endpoint
    if "AccountKey" in parts:
        config["account_key"] = parts["AccountKey"]
    if "SharedAccessSignature" in parts:
        config["sas_key"] = parts["SharedAccessSignature"].removeprefix("?")
    return config
