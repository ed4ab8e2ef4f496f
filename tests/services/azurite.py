"""Start Azurite, Microsoft's emulator of Azure Blob Storage: one Node process on 127.0.0.1."""

import base64
import email.utils
import hashlib
import hmac
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .ports import free_port

ACCOUNT = "devstoreaccount1"
# The published key of every emulator.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "tests"
HOW = "install it with `npm install --global azurite`"


@dataclass(frozen=True)
class AzureServer:
    """A running server with one empty container."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the address and the credentials."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }


def find_azurite() -> str | None:
    """Return the program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("azurite-blob")
    return str(beside) if beside.exists() else shutil.which("azurite-blob")


@contextmanager
def azurite(program: str, folder: Path, wait_s: float = 180) -> Iterator[AzureServer]:
    """Run a server that stores its data in ``folder`` within a with block."""
    server = AzureServer(free_port())
    folder.mkdir(parents=True)
    log = folder / "azurite.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program, "--blobHost", "127.0.0.1", "--blobPort", str(server.port),
                "--location", str(folder), "--disableTelemetry",
            ],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + wait_s
        while not _create_container(server):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Azurite did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()


def _create_container(server: AzureServer) -> bool:
    """Create the container by a signed request; obstore cannot. False if nothing listens yet."""
    path, date = f"/{ACCOUNT}/{CONTAINER}", email.utils.formatdate(usegmt=True)
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    named = "".join(f"{name}:{value}\n" for name, value in headers.items())
    text = f"PUT{12 * chr(10)}{named}/{ACCOUNT}{path}\nrestype:container"
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers["Content-Length"] = "0"
    url = f"http://127.0.0.1:{server.port}{path}?restype=container"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)):
            return True
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False
