"""A real Prometheus for tests: Debian's, with the settings and alerts of deploy/monitoring."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ports import free_port

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
SERVICE = "127.0.0.1:8300"
NO_TOKEN = "# authorization: {credentials_file: /etc/prometheus/serve-token}"


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Query its HTTP API and return the data. Raises HTTPError for an invalid query."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Evaluate ``expression`` now; returns the value of each series by its labels."""
        found = self.ask("query", query=expression)["result"]
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in found}


def installed() -> bool:
    """Whether this machine has Prometheus and promtool."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


@contextlib.contextmanager
def prometheus(
    folder: Path, discovery: Path, service: str = SERVICE, token_file: Path | None = None
) -> Iterator[Prometheus]:
    """Run a server that scrapes, every second, a service and the targets in Ray's file.

    Args:
        discovery: Ray's file.
        service: address of `orchestrator serve`.
        token_file: of the service, if it has one.
    """
    shutil.copytree(MONITORING, folder)
    settings = folder / "prometheus.yml"
    text = settings.read_text()
    assert all(each in text for each in (DISCOVERY, SERVICE, NO_TOKEN))
    text = text.replace(SERVICE, service)
    if token_file is not None:
        text = text.replace(NO_TOKEN, f"authorization: {{credentials_file: {token_file}}}")
    text = text.replace(DISCOVERY, str(discovery)).replace("_interval: 10s", "_interval: 1s")
    settings.write_text(text)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
                break
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus does not answer"
            time.sleep(0.2)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(20)
