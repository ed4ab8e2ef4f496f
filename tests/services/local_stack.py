"""A stack of `orchestrator up`, with the commands of a user and its processes."""

import base64
import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from services.ray_cluster import BIN

FOLDER = ".orchestrator/stack"


@dataclass
class Stack:
    """A project's folder with a running stack, and the output of the commands."""

    project: Path
    outputs: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.project / FOLDER

    @property
    def environ(self) -> dict[str, str]:
        """Environment of a shell that has sourced `env`."""
        command = f"set -e; source {FOLDER}/env; env -0"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.project,
            env=clean_environment(),
            capture_output=True,
            check=True,
        )
        return dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair)

    def start(
        self, *command: str, environ: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.project,
            env=clean_environment() if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *command: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = self.start(*command, environ=environ)
        text = process.communicate(timeout=900)[0]
        self.outputs.append(text)
        return process.returncode, text

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "state.json").read_text()))

    def pid(self, service: str) -> int:
        return int(self.state()["processes"][service]["pid"])

    def secrets(self) -> set[bytes]:
        """Every secret, and the password as it is encoded in requests."""
        found = {file.read_bytes() for file in (self.folder / "secrets").iterdir()}
        environ = self.environ
        admin = (self.folder / "secrets/mlflow-password").read_text()
        logins = (f"admin:{admin}", f"trainer:{environ['MLFLOW_TRACKING_PASSWORD']}")
        encoded = {base64.b64encode(login.encode()) for login in logins}
        keys = {environ["AWS_ACCESS_KEY_ID"].encode(), *encoded}
        key = (self.folder / "s3/grpc.key").read_bytes().splitlines()[1]
        assert all(len(secret) >= 20 for secret in found | keys | {key})
        return found | keys | {key}


def clean_environment() -> dict[str, str]:
    """Environment of a user who has set nothing for the stack."""
    foreign = ("RAY_", "MLFLOW_", "AWS_", "ORCHESTRATOR_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PATH": f"{BIN}:{kept['PATH']}"}


def processes_of(stack: Stack) -> dict[int, str]:
    """Command line by id of each process that the stack has started, by its environment."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("ORCHESTRATOR_STACK") == str(stack.folder):
                found[process.pid] = " ".join(process.cmdline())
    return {pid: line for pid, line in found.items() if line}


def listening_addresses(sessions: set[int]) -> set[tuple[str, str]]:
    """(address, title of the process) of each port that processes of these sessions listen on."""
    found = set()
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
            continue
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(connection.pid) in sessions:
                (title, *_) = psutil.Process(connection.pid).cmdline() or [""]
                found.add((f"{connection.laddr.ip}:{connection.laddr.port}", title.strip()))
    return found


def command_lines() -> set[str]:
    """Command lines of all processes of this machine."""
    lines = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.add("\0".join(process.cmdline()))
    return lines - {""}


def status_of(method: str, url: str, headers: Mapping[str, str] | None = None) -> int:
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
