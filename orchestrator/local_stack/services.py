"""Base class of the three services of a stack, and HTTP requests to them."""

import http.client
import os
import sys
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.processes import STACK_VARIABLE, Process

HOST = "127.0.0.1"
REQUEST_TIMEOUT_S = 5.0
SECRET_REFUSED = "refuses this stack's secret"
"""Problem that waiting does not solve."""
BIN = Path(sys.executable).parent
"""Folder of this environment's commands."""

# With these a service or job would use another cluster, tracking server or storage; and SeaweedFS
# makes the keys in its environment those of an administrator.
_FOREIGN_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN",
)  # fmt: skip


class Service(ABC):
    """One server of a stack."""

    name: ClassVar[str]
    ports: ClassVar[Mapping[str, int]]
    """Preferred port by name; 0 means any."""
    login: ClassVar[str]
    """Description of its credentials; {} is the file that holds them."""
    credentials: ClassVar[str]
    """Path of that file in the stack's folder."""
    stop_timeout_s: ClassVar[float] = 10
    """Seconds between SIGTERM and SIGKILL."""
    transient_error: ClassVar[str] = ""
    """Text at the end of its log after an error for which it is started again."""

    def __init__(self, folder: StackFolder) -> None:
        self.folder = folder

    @property
    def address(self) -> str:
        """Address for browsers and clients."""
        return f"http://{HOST}:{self.port()}"

    @property
    def secret_file(self) -> Path:
        """File with its credentials."""
        return self.folder.path / self.credentials

    @property
    def working_dir(self) -> Path:
        """Working directory of its process."""
        return self.folder.path / self.name

    def missing_package(self) -> str | None:
        """Name a package that it needs and that is not installed, or None."""
        return None

    @abstractmethod
    def command(self) -> list[str]:
        """Command line, without secrets, for all users of the machine can see it."""

    @abstractmethod
    def configure(self) -> dict[str, str]:
        """Write its configuration files. Returns its environment variables."""

    @abstractmethod
    def health_problem(self) -> str | None:
        """Send a request with its credentials. Returns None if it is healthy, else the problem."""

    def process(self) -> Process | None:
        """Process that was last started; None if it was stopped or never started."""
        found = self.folder.state.processes.get(self.name)
        return Process(**found) if found else None

    def is_running(self) -> bool:
        """Whether its process is alive, healthy or not."""
        process = self.process()
        return process is not None and process.is_running()

    def port(self, name: str = "") -> int:
        """Number of a port, by default of the main one; before `up` the preferred number."""
        name = name or next(iter(self.ports))
        return self.folder.state.ports.get(name, self.ports[name])

    def environ(self) -> dict[str, str]:
        """Environment of its process: the user's, with its own variables on top."""
        kept = {key: value for key, value in os.environ.items() if key not in _FOREIGN_VARIABLES}
        local = ",".join(filter(None, [kept.get("no_proxy") or kept.get("NO_PROXY"), HOST]))
        return {
            **kept,
            "PATH": f"{BIN}:{kept.get('PATH', os.defpath)}",
            "no_proxy": local,
            "NO_PROXY": local,
            "PYTHONUNBUFFERED": "1",
            STACK_VARIABLE: str(self.folder.path),
            **self.configure(),
        }


def open_without_proxy(request: urllib.request.Request, timeout_s: float) -> Any:
    """Send a request directly, whatever proxy the environment sets. Returns the response."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=timeout_s)


def http_problem(url: str, headers: Mapping[str, str]) -> str | None:
    """Request ``url``. Returns None if that succeeds within ``REQUEST_TIMEOUT_S``, else why not."""
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with open_without_proxy(request, REQUEST_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            return f"{url} {SECRET_REFUSED}"
        return f"{url} answers with status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url} does not answer: {str(getattr(error, 'reason', error)).strip()}"
