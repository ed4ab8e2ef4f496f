"""What the three servers of a stack have in common, and how one of them is asked for its health."""

import os
import sys
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar

from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.processes import MARK, Process

HOST = "127.0.0.1"
ANSWER_S = 5.0
REFUSED = "refuses this stack's secret"
"""Said of a server that no waiting makes well."""
BIN = Path(sys.executable).parent
"""Where this environment's commands are."""

# What would make a server or a job use another cluster, tracking server or storage than this one's;
# and SeaweedFS makes whoever has the keys in its environment an administrator.
_FOREIGN = (
    "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN",
)  # fmt: skip

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


class Service(ABC):
    """One server: how it is started, where it answers and how one knows that it does."""

    name: ClassVar[str]
    ports: ClassVar[Mapping[str, int]]
    """Its ports by name, and the number each has where that is free; 0: no matter which."""
    login: ClassVar[str]
    """What it asks for, in words; {} is where the secret is."""
    patience_s: ClassVar[float] = 10
    """How long it may take to end by itself before it is killed."""
    passing: ClassVar[str] = ""
    """What its log says at its end when it has ended of something that may pass."""

    def __init__(self, folder: StackFolder) -> None:
        self.folder = folder

    @property
    @abstractmethod
    def address(self) -> str:
        """Where it answers, for a browser or a client."""

    @property
    @abstractmethod
    def secret_file(self) -> Path:
        """The file with what it asks for."""

    @property
    def where(self) -> Path:
        """The folder in which its process starts."""
        return self.folder.path / self.name

    def missing(self) -> str | None:
        """What is not installed that it needs, or None."""
        return None

    @abstractmethod
    def command(self) -> list[str]:
        """Its command line, without secrets: all users of the machine can see it."""

    @abstractmethod
    def prepare(self) -> dict[str, str]:
        """Write its files; what it needs in its environment."""

    @abstractmethod
    def problem(self) -> str | None:
        """Ask it something with its secret: None if all is well, else what is wrong."""

    def process(self) -> Process | None:
        """Its process as it was last started, or None if it was stopped or never started."""
        found = self.folder.state.processes.get(self.name)
        return Process(**found) if found else None

    def runs(self) -> bool:
        """Whether its process is there, healthy or not."""
        process = self.process()
        return process is not None and process.runs()

    def port(self, name: str = "") -> int:
        """The number of one of its ports, by default the main one's; before `up`: what it wants."""
        name = name or next(iter(self.ports))
        return self.folder.state.ports.get(name, self.ports[name])

    def environ(self) -> dict[str, str]:
        """The environment that it starts with: the user's, and its own on top."""
        kept = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        local = ",".join(filter(None, [kept.get("no_proxy") or kept.get("NO_PROXY"), HOST]))
        return {
            **kept,
            "PATH": f"{BIN}:{kept.get('PATH', os.defpath)}",
            "no_proxy": local,
            "NO_PROXY": local,
            "PYTHONUNBUFFERED": "1",
            MARK: str(self.folder.path),
            **self.prepare(),
        }


def ask(url: str, headers: Mapping[str, str]) -> str | None:
    """None if ``url`` gives 200, else what it gives instead. Waits for ANSWER_S."""
    try:
        with _opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=ANSWER_S):
            return None
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            return f"{url} {REFUSED}"
        return f"{url} answers with {error.code}"
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {getattr(error, 'reason', error)}"
